"""Both jobs on an archive that lies on a store: the same output as from its folder."""

import shutil
from pathlib import Path

import pytest
from jobs import SMALL, TWO_WORKERS
from store import Store

from beam.infer import pipeline as infer
from beam.ingest import pipeline as ingest
from beam.runners.run import pipeline_options
from runtime import storage
from runtime.parquet import read_table
from schemas.config import InferConfig
from schemas.manifest import load_manifest
from schemas.published import files_of, partitions


def _pack(folder: Path, place: str, scratch: Path) -> str:
    """Writes a folder as an archive."""
    kind = place.rpartition(".")[2]
    path = Path(shutil.make_archive(str(scratch / "packed"), kind, folder))
    storage.write_bytes(place, path.read_bytes())
    return place


@pytest.fixture(params=["zip", "tar"])
def packed(request, bucket: Store, scenes: Path, tmp_path: Path) -> str:
    """The scenes as an archive on the store."""
    return _pack(scenes, bucket.uri(f"scenes.{request.param}"), tmp_path)


def test_both_jobs_read_it(packed: str, dataset: Path, plain_model: Path, tmp_path: Path) -> None:
    options = pipeline_options(TWO_WORKERS)
    found = load_manifest(ingest.run(packed, str(tmp_path / "datasets"), SMALL, options))
    assert found.shards == load_manifest(dataset).shards
    assert found.source == packed

    config, output = InferConfig(height=32, width=48), str(tmp_path / "predictions")
    infer.run(str(plain_model), packed, None, output, config, options=options)
    (partition,) = partitions(output)
    rows = read_table(files_of(output, "masks", partition))
    assert min(rows["source_uri"].to_pylist()) == f"{packed}/CameraRGB/000_0000.png"
    # Each has its truth.
    assert (len(rows), rows["pixel_accuracy"].null_count) == (40, 0)


def test_archives_below_a_folder_are_opened(bucket: Store, scenes: Path, tmp_path: Path) -> None:
    folder = bucket.uri("archives")
    for number, name in enumerate(("a.zip", "b.tar")):
        for camera in ("CameraRGB", "CameraSeg"):
            target = tmp_path / name / camera
            target.mkdir(parents=True)
            for path in sorted((scenes / camera).iterdir())[number::2]:
                shutil.copy(path, target)
        _pack(tmp_path / name, f"{folder}/{name}", tmp_path)
    config = SMALL.model_copy(update={"archives": "open"})
    options = pipeline_options(TWO_WORKERS)
    found = load_manifest(ingest.run(folder, str(tmp_path / "datasets"), config, options))
    assert (found.records, found.files_listed) == (40, 80)
