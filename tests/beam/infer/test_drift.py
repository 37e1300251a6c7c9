"""Profiles of published predictions beside the one that the training recorded."""

from pathlib import Path

import duckdb
import numpy as np
import pytest
from jobs import IN_MEMORY, Trained
from PIL import Image

from beam.infer.__main__ import main as infer_main
from beam.infer.drift import profile_of
from beam.infer.model_uri import resolve_model
from schemas.config import InferConfig
from schemas.drift import Drift

PARTITION = "model=lyft-unet/version=v1/source=lyft"


def test_a_profile_is_the_sum_of_the_tables(tables: Path) -> None:
    found = profile_of(str(tables), PARTITION)
    rows = duckdb.sql(
        f"FROM '{tables}/class_stats/{PARTITION}/*.parquet' SELECT class_name::VARCHAR,"
        " sum(pixel_count)::BIGINT GROUP BY class_id, class_name ORDER BY class_id"
    ).fetchall()
    assert list(found.class_pixels.items()) == rows
    mean, images = duckdb.sql(
        f"FROM '{tables}/masks/{PARTITION}/*.parquet' SELECT avg(mean_confidence), count(*)"
    ).fetchall()[0]
    assert (found.mean_confidence, found.images) == (pytest.approx(mean, abs=1e-6), images)


def test_the_validation_split_itself_has_not_drifted_and_other_images_have(
    trained: Trained, dataset: Path, tmp_path: Path
) -> None:
    def drift(*place: str) -> Drift:
        file = tmp_path / "new/drift.json"
        file.unlink(missing_ok=True)
        store = f"--tracking_uri={trained.tracking_uri}"
        given = (f"--model={trained.model}", f"--output={tmp_path}/out", f"--drift={file}", store)
        infer_main([*given, *place, "--precision=float32", *IN_MEMORY])
        return Drift.model_validate_json(file.read_bytes())

    same = (f"--dataset={dataset}", "--split=validation")
    found = drift(*same)
    assert found.validation is not None
    assert found.now.class_pixels.keys() == found.validation.class_pixels.keys()
    assert found.now.images == found.validation.images == 4
    assert sum(found.now.class_pixels.values()) == sum(found.validation.class_pixels.values())
    # Another engine: single pixels may be of another class.
    assert found.distance == pytest.approx(0, abs=1e-3)
    assert found.now.mean_confidence == pytest.approx(found.validation.mean_confidence, abs=1e-3)
    # Found published.
    assert drift(*same) == found

    # All white.
    shifted = tmp_path / "shifted/CameraRGB"
    shifted.mkdir(parents=True)
    for number in range(3):
        Image.fromarray(np.full((32, 48, 3), 255, np.uint8)).save(shifted / f"{number}.png")
    other = drift(f"--source={shifted.parent}")
    most = other.now.class_pixels
    shares = {name: count / sum(most.values()) for name, count in most.items()}
    then = {name: found.validation.share(name) for name in shares}
    expected = sum(abs(shares[name] - then[name]) for name in shares) / 2
    assert other.distance == pytest.approx(expected)
    assert other.distance > 0.1
    assert other.validation == found.validation


def test_a_model_of_an_earlier_version_has_no_profile(trained: Trained) -> None:
    given = (trained.model, InferConfig(), trained.tracking_uri)
    folder = Path(resolve_model(*given).keras_file).parents[1]
    text = (folder / "MLmodel").read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    start = next(i for i, line in enumerate(lines) if line.startswith("  validation:"))
    end = next(i for i, line in enumerate(lines[start + 1 :], start + 1) if line[2] != " ")
    try:
        (folder / "MLmodel").write_text("".join(lines[:start] + lines[end:]), encoding="utf-8")
        assert resolve_model(*given).validation is None
    finally:
        (folder / "MLmodel").write_text(text, encoding="utf-8")
    assert resolve_model(*given).validation is not None
