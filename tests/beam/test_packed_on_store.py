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


@pytest.fixture(params=["zip", "tar"])
def packed(request, bucket: Store, scenes: Path, tmp_path: Path) -> str:
    """The scenes as an archive on the store."""
    path = shutil.make_archive(str(tmp_path / "scenes"), request.param, scenes)
    storage.write_bytes(place := bucket.uri(Path(path).name), Path(path).read_bytes())
    return place


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
