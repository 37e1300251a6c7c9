"""Mutated PNGs: each is read with the same pixels as in Pillow, or rejected with a reason."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ingesting import run_ingest
from jobs import SMALL
from mutants import mutants, read_beside_pillow

from flows.scenes import draw_scene
from images import png
from schemas.manifest import load_manifest

MUTANTS = 300


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_each_mutant_is_read_as_pillow_reads_it_or_rejected() -> None:
    """Of 2,400; `make soak` tries 10,000."""
    outcomes = read_beside_pillow(2_400)
    read = sum(count for name, count in outcomes.items() if name.endswith("read"))
    assert 100 < read < 2_300


def test_a_job_over_mutants_ends_with_a_reason_for_each(tmp_path: Path) -> None:
    image, mask = (png.encode(pixels) for pixels in draw_scene(3, 48, 36))
    for folder in ("CameraRGB", "CameraSeg"):
        (tmp_path / "raw" / folder).mkdir(parents=True)
    for index, (_, data) in enumerate(mutants(MUTANTS)):
        damaged, whole = ("CameraRGB", "CameraSeg") if index % 2 else ("CameraSeg", "CameraRGB")
        (tmp_path / "raw" / damaged / f"{index:04d}.png").write_bytes(data)
        (tmp_path / "raw" / whole / f"{index:04d}.png").write_bytes(
            mask if whole == "CameraSeg" else image
        )
    config = SMALL.model_copy(update={"max_reject_fraction": 1.0, "max_doubtful_fraction": 1.0})
    folder = run_ingest(tmp_path / "raw", tmp_path / "out", config)
    manifest = load_manifest(folder)
    rejects = pq.read_table(folder / "rejects.parquet")
    assert manifest.records + rejects.num_rows == MUTANTS
    assert manifest.records > 5
    assert all(rejects["message"].to_pylist())
    assert sum(manifest.rejects.values()) == rejects.num_rows
