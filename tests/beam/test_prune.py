"""Old dataset versions go, unless a model, a table or a running ingest refers to them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from inference import run_infer
from ingesting import run_ingest
from jobs import SMALL, Job

from beam import prune
from beam.shared import staging
from runtime.errors import UserError
from runtime.mlflow_store import TRACKING_URI
from schemas.config import InferConfig
from schemas.manifest import load_manifest


@pytest.fixture(scope="module")
def published(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five versions of a dataset, the oldest first."""
    folder = tmp_path_factory.mktemp("versions")
    raw = shutil.copytree(scenes, folder / "raw")
    made = []
    for at in range(5):
        (raw / f"CameraRGB/000_{at:04}.png").unlink()
        (raw / f"CameraSeg/000_{at:04}.png").unlink()
        made.append(run_ingest(raw, folder / "datasets"))
        os.utime(made[-1] / "manifest.json", (at, at))
    return made


@pytest.fixture
def versions(published: list[Path], tmp_path: Path) -> list[Path]:
    """A copy of them, with the hard links between them."""
    copied = tmp_path / "datasets/small"
    copied.mkdir(parents=True)
    subprocess.run(["cp", "-a", *published, copied], check=True)
    return [copied / version.name for version in published]


def _prune(tmp_path: Path, store: str, *options: str) -> list[str]:
    places = (f"--datasets={tmp_path}/datasets", f"--predictions={tmp_path}/predictions")
    return prune.main([*places, f"--tracking_uri={store}", *options]).splitlines()


def test_what_nothing_refers_to_may_go(
    versions: list[Path], trained, dataset: Path, tmp_path: Path
) -> None:
    # The shared model was trained on a version that is older than all others here.
    origin = tmp_path / "datasets/small" / dataset.name
    shutil.copytree(dataset, origin)
    os.utime(origin / "manifest.json", (0, 0))
    os.utime(versions[0] / "manifest.json", (0.5, 0.5))
    config = InferConfig(source_name="old", split="test")
    run_infer(trained, tmp_path / "predictions", config, dataset=versions[1])

    lines = _prune(tmp_path, trained.tracking_uri)
    line_of = {line.split()[0]: line for line in lines[:-1]}
    assert list(line_of) == [*map(str, reversed(versions)), str(origin)]
    for version in versions[3:]:
        assert line_of[str(version)].endswith("stays: one of the newest 2")
    assert line_of[str(versions[1])].endswith(
        f"stays: {tmp_path}/predictions: model=small-unet/version=v1/source=old"
    )
    assert line_of[str(origin)].endswith(f"stays: {trained.model}")
    assert [path for path, line in line_of.items() if line.endswith("may go")] == [
        str(versions[2]),
        str(versions[0]),
    ]
    assert lines[-1].startswith("2 versions may go, ")
    assert lines[-1].endswith(": add --delete")
    # Nothing has gone yet.
    assert all(load_manifest(version) for version in (*versions, origin))

    assert _prune(tmp_path, trained.tracking_uri, "--delete")[-1].startswith("removed 2 versions")
    left = {path.name for path in (tmp_path / "datasets/small").iterdir()}
    assert left == {one.name for one in (versions[1], *versions[3:], origin)}
    # Shards that versions share by hard links are whole.
    for version in (versions[1], *versions[3:]):
        manifest = load_manifest(version)
        assert all((version / one.name).stat().st_size == one.bytes for one in manifest.shards)
    assert _prune(tmp_path, trained.tracking_uri, "--delete")[-1] == "nothing to remove"


def test_an_ingest_that_runs_may_read_any_version(
    versions: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The usual places of tables and models, which do not exist yet, keep nothing.
    monkeypatch.chdir(tmp_path)
    arguments = ["--datasets=datasets", "--delete", "--keep=1", f"--tracking_uri={TRACKING_URI}"]
    with staging.staging_folder(str(tmp_path / "datasets/small")):
        lines = prune.main(arguments).splitlines()
        assert sum(line.endswith("an ingest is running, which may read it") for line in lines) == 4
    assert all(version.is_dir() for version in versions)
    assert prune.main(arguments).splitlines()[-1].startswith("removed 4 versions")
    assert not (tmp_path / "outputs").exists()


def test_mistakes_are_one_line(job_here: Job, tmp_path: Path) -> None:
    for arguments, complaint in (
        (("--keep=0",), "expected at least 1"),
        ((f"--datasets={tmp_path}/none",), "holds no dataset"),
    ):
        done = job_here("beam.prune", *arguments, f"--tracking_uri=sqlite:///{tmp_path}/none.db")
        assert done.returncode == 2
        assert complaint in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_damaged_manifest_says_where_it_is(versions: list[Path], tmp_path: Path) -> None:
    (versions[0] / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=f"{versions[0]}/manifest.json: not a manifest"):
        _prune(tmp_path, f"sqlite:///{tmp_path}/none.db")
    run = tmp_path / "predictions/runs/model=x/version=v1/source=y/run.parquet"
    run.parent.mkdir(parents=True)
    run.write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"{run}: not the row of a run"):
        _prune(tmp_path, f"sqlite:///{tmp_path}/none.db")


def test_the_newest_is_by_time_of_publishing_and_missing_places_are_told(
    versions: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.utime(versions[0] / "manifest.json", (100, 100))
    lines = _prune(tmp_path, f"sqlite:///{tmp_path}/none.db", "--keep=1")
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    for place, warning in zip(("predictions", "none.db"), warnings, strict=True):
        assert f"{tmp_path}/{place} does not exist" in warning
    assert lines[0].startswith(str(versions[0]))
    assert load_manifest(versions[0]).config == SMALL


def test_a_misspelt_place_removes_nothing(versions: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"predictions does not exist.*nothing was removed"):
        _prune(tmp_path, f"sqlite:///{tmp_path}/none.db", "--keep=1", "--delete")
    (tmp_path / "predictions").mkdir()
    with pytest.raises(UserError, match=r"none\.db does not exist.*nothing was removed"):
        _prune(tmp_path, f"sqlite:///{tmp_path}/none.db", "--keep=1", "--delete")
    assert all((version / "manifest.json").exists() for version in versions)
