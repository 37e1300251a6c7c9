"""Incremental runs over a dataset: its records are compared as a folder's files are."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from inference import counts_of, query, run_infer, tables_of

from beam.infer import incremental
from images import png
from schemas.config import InferConfig
from schemas.example import encode, parse, read_records, write_record
from schemas.manifest import load_manifest


def test_a_dataset_is_gone_on_with_too(trained, dataset: Path, tmp_path: Path, predicted) -> None:
    output = run_infer(trained, tmp_path / "out", dataset=dataset)
    assert len(predicted()) == 40
    run_infer(trained, output, InferConfig(part_mib=0.01), dataset=dataset)
    assert predicted() == []
    assert counts_of(output) == (40, 40, 40, 0)
    assert tables_of(output) == tables_of(
        run_infer(trained, tmp_path / "fresh", InferConfig(part_mib=0.01), dataset=dataset)
    )


def _rewritten(dataset: Path, **changes: bytes) -> None:
    """Changes all records of a dataset in place, as another version at the same path would."""
    for name in (shard.name for shard in load_manifest(dataset).shards):
        with (dataset / name).open("rb") as file:
            examples = [parse(record) for record in read_records(file, name)]
        with (dataset / name).open("wb") as file:
            for example in examples:
                write_record(file, encode(replace(example, **changes)))


def test_new_labels_at_the_same_place_are_new_truth(
    trained, dataset: Path, tmp_path: Path, predicted
) -> None:
    place = Path(shutil.copytree(dataset, tmp_path / "current"))
    config = InferConfig(source_name="current")
    output = run_infer(trained, tmp_path / "out", config, dataset=place)
    predicted()
    _rewritten(place, mask=png.encode(np.zeros((32, 48), np.uint8)))
    manifest = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").write_text(json.dumps({**manifest, "fingerprint": "0" * 32}))
    run_infer(trained, output, config, dataset=place)
    assert len(predicted()) == 40
    true = "FROM class_stats SELECT DISTINCT class_id WHERE true_pixel_count > 0"
    assert query(output, true) == [(0,)]
    assert tables_of(output) == tables_of(
        run_infer(trained, tmp_path / "fresh", config, dataset=place)
    )


def test_a_record_without_a_readable_mask_is_predicted(trained, dataset, tmp_path, predicted):
    place = Path(shutil.copytree(dataset, tmp_path / "damaged"))
    _rewritten(place, mask=b"damaged")
    config = InferConfig(split="test")
    output = run_infer(trained, tmp_path / "out", config, dataset=place)
    assert query(output, "FROM rejects SELECT DISTINCT stage, code") == [("truth", "format")]
    assert query(output, "FROM rejects SELECT source_uri")[0][0].split("/")[-2] == "CameraSeg"
    assert query(output, "FROM masks SELECT count(*), count(pixel_accuracy)") == [(4, 0)]
    assert len(predicted()) == 4
    # The rejects are kept with the rows that are.
    config = InferConfig(split="test", part_mib=0.01)
    run_infer(trained, output, config, dataset=place)
    assert predicted() == []
    assert tables_of(output) == tables_of(
        run_infer(trained, tmp_path / "fresh", config, dataset=place)
    )


def test_rows_of_another_split_are_not_taken_over() -> None:
    """A dataset of the same name may have moved an image, and its rows name its split."""
    hashes = "a" * 64, "b" * 64
    image = incremental.identity_of("/raw/1.png", "train", *hashes), 7
    previous = incremental.PreviousResults((image,))
    assert previous.find_mask_size("/raw/1.png", "train", *hashes) == 7
    for other in (
        ("/raw/1.png", "test", *hashes),
        ("/raw/2.png", "train", *hashes),
        ("/raw/1.png", "train", hashes[0], None),
        ("/raw/1.png", "train", *reversed(hashes)),
    ):
        assert previous.find_mask_size(*other) is None
