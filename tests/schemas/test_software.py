"""What is published is identified by the software that made it, and workers must have the same."""

import hashlib
import io
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from inference import query, run_infer
from ingesting import records_of, run_ingest
from jobs import Trained
from PIL import Image

from beam.infer.model_uri import ResolvedModel
from beam.infer.pictures import Picture, Prediction
from beam.infer.table_rows import rows_of
from beam.runners.run import run_pipeline
from images import masks, png
from images.resize import resize_image, resize_nearest
from runtime.errors import UserError
from schemas import software
from schemas.classes import load_taxonomy
from schemas.config import IngestConfig
from schemas.layout import SPLITS
from schemas.manifest import load_manifest

TAXONOMY = load_taxonomy("carla-0.8")
ROWS, COLUMNS = np.mgrid[:60, :80]
IMAGE = np.stack([ROWS * 4, COLUMNS * 3, ROWS * COLUMNS % 251], axis=2).astype(np.uint8)
IDS = (ROWS // 10 + COLUMNS // 20).astype(np.uint8)


def _images(_: Path) -> list[bytes]:
    """Pixels of files of several kinds, and of the same at other sizes."""
    config, mask = IngestConfig(), np.stack([IDS, IDS * 0, IDS * 0], axis=2)
    found = [png.read_image(png.encode(IMAGE), config), png.decode_ids(png.encode(IDS))]
    found.append(masks.read_mask_for(png.encode(mask), IMAGE, TAXONOMY, config))
    found += [resize_image(IMAGE, 24, 36, how) for how in ("nearest", "bilinear", "area")]
    found.append(resize_nearest(IDS, 24, 36))
    return [array.tobytes() for array in found]


def _records(folder: Path) -> list[bytes]:
    """The records of a small drive, their PNGs as pixels, since zlib has a version of its own."""
    raw = folder / "raw"
    for camera in ("CameraRGB", "CameraSeg"):
        (raw / camera).mkdir(parents=True)
    for number in range(24):
        mask = np.stack([np.roll(IDS, number, axis=0), IDS * 0, IDS * 0], axis=2)
        image = np.roll(IMAGE, number * 7, axis=1) + np.uint8(number * 9)
        (raw / f"CameraRGB/{number:04}.png").write_bytes(png.encode(image))
        (raw / f"CameraSeg/{number:04}.png").write_bytes(png.encode(mask))
    config = IngestConfig(
        name="small", height=24, width=32, block_length=2, max_doubtful_fraction=1
    )
    published = run_ingest(raw, folder, config)
    found = [load_manifest(published).model_dump_json(include={"rejects", "doubts"})]
    for split in SPLITS:
        for one in records_of(published, split):
            found += [f"{split} {one.id} {one.source_height} {one.source_width}"]
            found += [png.decode_image(one.image, 768).tobytes().hex()]
            found += [png.decode_ids(one.mask).tobytes().hex()]
    return [one.encode() for one in found]


def _rows(_: Path) -> list[bytes]:
    """The rows of an image, the mask's PNG as pixels, since zlib has a version of its own."""
    model = ResolvedModel("", "unet", "v1", "", "", TAXONOMY, 60, 80, "nearest")
    picture = Picture("a", "a.png", "/raw/a.png", None, 80, 60, IMAGE, IDS, "0f", "1e")
    confidence = ((ROWS + COLUMNS) % 16 / 16).astype(np.float32)
    row, columns = rows_of(Prediction(picture, IDS, confidence), model, "run")
    mask = row.pop("mask")["bytes"]
    assert row.pop("mask_size") == len(mask)
    pixels = np.asarray(Image.open(io.BytesIO(mask)))
    return [repr(sorted(row.items())).encode(), repr(columns).encode(), pixels.tobytes()]


GOLDEN = {
    ("IMAGES", 2): "051a497a102d4cc0a97bd70e56d1cfe4dc27571f5544ce0a3b1d8c10c8ab0f27",
    ("RECORDS", 2): "d33ade177a9cd584894dbc03b1223abdae9b3eac72aab176bc5fc0b416e1d37b",
    ("ROWS", 2): "0dab2d2f2e775b5c4cd1d0e868ca59d08ad389e506e09a77a5ea216c62ad3fb9",
}


@pytest.mark.parametrize(
    ("name", "make"), [("IMAGES", _images), ("RECORDS", _records), ("ROWS", _rows)]
)
def test_changed_output_needs_another_format_number(name: str, make, tmp_path: Path) -> None:
    """If this fails and the change is meant: raise the number, and note the new digest here."""
    digest = hashlib.sha256(b"\0".join(make(tmp_path))).hexdigest()
    assert GOLDEN.get((name, getattr(software, name))) == digest


def test_other_software_makes_another_dataset(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_ingest(scenes, tmp_path)
    before = load_manifest(first)
    assert before.made_with == software.of_records()
    monkeypatch.setattr(software, "RECORDS", software.RECORDS + 1)
    second = run_ingest(scenes, tmp_path)
    after = load_manifest(second)
    assert after.fingerprint != before.fingerprint
    assert {one.source_sha256 for one in after.shards}.isdisjoint(
        one.source_sha256 for one in before.shards
    )
    # Both are there, and each is found again.
    assert run_ingest(scenes, tmp_path) == second != first
    monkeypatch.undo()
    assert run_ingest(scenes, tmp_path) == first


def test_other_software_predicts_again(
    trained: Trained, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counts() -> list[tuple]:
        run_infer(trained, tmp_path, source=scenes)
        return query(tmp_path, "SELECT run_id, images_reused FROM runs")

    ((first, reused),) = counts()
    assert reused == 0
    assert counts() == [(first, 0)]
    monkeypatch.setattr(software, "ROWS", software.ROWS + 1)
    ((second, reused),) = counts()
    assert second != first
    assert reused == 0


@pytest.mark.parametrize("module", ["ingest", "infer"])
def test_a_worker_with_other_software_ends_the_job(
    module: str, trained: Trained, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(*job: object) -> None:
        """Runs the pipeline as a worker does that was set up at another time."""
        with monkeypatch.context() as patch:
            patch.setattr(software, "IMAGES", software.IMAGES + 1)
            run_pipeline(*job)

    monkeypatch.setattr(f"beam.{module}.pipeline.run_pipeline", elsewhere)
    numbers = rf"images {software.IMAGES + 1}; expected images {software.IMAGES}; install"
    run = (
        partial(run_ingest, scenes, tmp_path)
        if module == "ingest"
        else partial(run_infer, trained, tmp_path, source=scenes)
    )
    with pytest.raises(UserError, match=f"a worker has other software .*: {numbers}"):
        run()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and ".lock" not in path.name]
