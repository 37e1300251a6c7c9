"""The summary at the end of a run, from tables that are written here."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flows.lifecycle.summary import class_rows, class_summary, draw_examples
from images.png import encode_palette
from schemas.example import parse, read_records
from schemas.manifest import load_manifest
from schemas.published import FILES_KEY

PARTITION = "model=m/version=v1/source=s"


def _publish(root: Path, table: str, files: list[list[dict]]) -> None:
    """Writes the files of one table, and the run's row that names them."""
    folder = root / table / PARTITION
    folder.mkdir(parents=True)
    names = {}
    for index, rows in enumerate(files):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{index}.parquet")
        names[f"{table}/{index}.parquet"] = ""
    run = root / "runs" / PARTITION / "run.parquet"
    run.parent.mkdir(parents=True)
    footer = {FILES_KEY: json.dumps(names).encode()}
    pq.write_table(pa.table({"run_id": ["r"]}).replace_schema_metadata(footer), run)


def _row(class_id: int, split: str | None, pixels: int, overlap: int | None, union: int | None):
    return {
        "image_id": "i",
        "class_id": class_id,
        "class_name": "ab"[class_id],
        "split": split,
        "pixel_count": pixels,
        "intersection": overlap,
        "union": union,
    }


def test_classes_are_summed_over_all_files(tmp_path: Path) -> None:
    first = [_row(0, "train", 30, 1, 30), _row(1, "train", 10, 1, 10), _row(0, "test", 20, 5, 20)]
    second = [_row(0, "test", 20, 10, 10), _row(1, "test", 20, 0, 0)]
    _publish(tmp_path, "class_stats", [first, second])
    one, two = class_summary(tmp_path, PARTITION)
    assert (one.class_name, one.pixel_share, one.iou) == ("a", 0.7, 0.5)
    assert (two.class_name, two.pixel_share, two.iou) == ("b", pytest.approx(0.3), None)
    assert class_rows([one]) == [{"class": "a", "pixel share": "70.00%", "IoU on test": "0.500"}]


@pytest.mark.parametrize(("overlap", "union", "iou"), [(3, 4, 0.75), (None, None, None)])
def test_iou_is_over_all_images_without_a_test_split(
    overlap: int | None, union: int | None, iou: float | None, tmp_path: Path
) -> None:
    _publish(tmp_path, "class_stats", [[_row(0, None, 5, overlap, union)]])
    (one,) = class_summary(tmp_path, PARTITION)
    assert (one.iou, one.iou_over, one.pixel_share) == (iou, "all", 1.0)


def test_an_image_without_a_known_pixel_is_not_drawn(dataset: Path, tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.fromarray(np.zeros((32, 48), np.uint8)).save(out, "PNG")
    ids = []
    for name in load_manifest(dataset).shard_names("test"):
        with (dataset / name).open("rb") as file:
            ids += [parse(record).id for record in read_records(file, name)]
    rows = [
        {
            "image_id": one,
            "split": "test",
            "mask": {"bytes": out.getvalue(), "path": ""},
            "pixel_accuracy": 0.5 if index else None,
        }
        for index, one in enumerate(ids)
    ]
    _publish(tmp_path, "masks", [rows])
    assert draw_examples(dataset, tmp_path, PARTITION, tmp_path / "all.png")
    with Image.open(tmp_path / "all.png") as picture:
        drawn = (picture.height - 24) // 213
    assert drawn == len(ids) - 1 == 3


def test_a_target_is_drawn_in_its_own_colours(dataset: Path, tmp_path: Path) -> None:
    """Class 1 of the dataset is Buildings; of the model, it is the target."""
    manifest = load_manifest(dataset)
    binary, _ = manifest.taxonomy.one_vs_rest(["Roads"])
    name, *_ = manifest.shard_names("test")
    with (dataset / name).open("rb") as file:
        image_id = parse(next(iter(read_records(file, name)))).id
    mask = encode_palette(np.ones((32, 48), np.uint8), binary.palette)
    row = {"image_id": image_id, "split": "test", "mask": {"bytes": mask, "path": ""}}
    _publish(tmp_path, "masks", [[row | {"pixel_accuracy": 0.5}]])
    (file,) = (tmp_path / "masks").rglob("*.parquet")
    footer = {"lyft.taxonomy_sha256": binary.sha256}
    pq.write_table(pq.ParquetFile(file).read().replace_schema_metadata(footer), file)
    assert draw_examples(dataset, tmp_path, PARTITION, tmp_path / "all.png")
    with Image.open(tmp_path / "all.png") as picture:
        assert picture.getpixel((picture.width - 40, 100)) == (128, 64, 128)
