"""The job is killed before each of its changes: readers see nothing or all, the next run mends."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from forks import Forks
from jobs import IN_MEMORY, SMALL_ARGUMENTS, TWO_WORKERS, started
from kills import points
from servers import until

from flows.flink_demo import published_digests

pytestmark = pytest.mark.slow

PAIRS = 12


@pytest.fixture(scope="module")
def raw(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few pairs: a kill before each change takes two jobs."""
    folder = tmp_path_factory.mktemp("raw")
    for camera in ("CameraRGB", "CameraSeg"):
        (folder / camera).mkdir()
        for path in sorted((scenes / camera).iterdir())[:PAIRS]:
            shutil.copy(path, folder / camera)
    return folder


def _visible(output: Path) -> list[Path]:
    return sorted(path for path in output.glob("small/*") if not path.name.startswith("."))


def _published(output: Path) -> dict[str, str]:
    """Files of all visible versions."""
    return {
        f"{version.name}/{name}": data
        for version in _visible(output)
        for name, data in published_digests(version).items()
    }


def _arguments(raw: Path, output: Path) -> list[str]:
    return [f"--source={raw}", f"--output={output}", *SMALL_ARGUMENTS, *IN_MEMORY]


LINKING = "os.link /small/*/small-*.tfrecord-*-of-* -> /small/.staging-*/rows/*.part"
PUBLISHING = "os.rename /small/.staging-*/dataset -> /small/*"


# Some 16 jobs of over a second each.
def test_a_kill_before_any_change_leaves_nothing_or_all_of_it(
    forks: Forks, raw: Path, tmp_path: Path
) -> None:
    """Each job meets what the killed one before it has left, and is killed one change later."""
    output = tmp_path / "out"
    changes = forks.changes(output, "beam.ingest", *_arguments(raw, output))
    expected = published_digests(output / "small")
    assert len(expected) == 10
    assert "shutil.rmtree /small/.staging-*" in changes
    for name in ("tfrecord-*-of-*", "manifest.json", "sources.parquet", "rejects.parquet"):
        assert any(change.endswith(name) and "os.rename" in change for change in changes), name
    shutil.rmtree(output)
    for point in points(changes):
        code = forks.killed(point, output, "beam.ingest", *_arguments(raw, output))
        if changes.index(point[0]) <= changes.index(PUBLISHING):
            assert (code, _published(output)) == (-9, {}), point
        else:
            # Killed after publishing, or it finds nothing to do but what a killed one has left.
            assert code in (-9, 0), point
            assert _published(output) == expected, point
    assert forks.job("beam.ingest", *_arguments(raw, output)).returncode == 0
    # No staging folder and no lock is left.
    assert published_digests(output / "small") == expected


def test_a_kill_beside_an_earlier_version_leaves_that_one_whole(
    forks: Forks, raw: Path, tmp_path: Path
) -> None:
    """The new version links shards of the earlier one; a kill in between must not touch them."""
    grown, output, fresh = (tmp_path / name for name in ("raw", "out", "fresh"))
    shutil.copytree(raw, grown)
    assert forks.job("beam.ingest", *_arguments(grown, output)).returncode == 0
    before = published_digests(output / "small")
    for camera in ("CameraRGB", "CameraSeg"):
        data = (raw / camera / "000_0000.png").read_bytes()
        (grown / camera / "more_0001.png").write_bytes(data + b"\0")
    assert forks.job("beam.ingest", *_arguments(grown, fresh)).returncode == 0
    expected = published_digests(fresh / "small")
    arguments = _arguments(grown, output)
    for change in (LINKING, PUBLISHING):
        point = (change, 1)
        assert forks.killed(point, output, "beam.ingest", *arguments) == -9
        assert _published(output) == before
    assert forks.job("beam.ingest", *arguments).returncode == 0
    # Sources and card name the same folder in both outputs, so that all files are the same.
    assert published_digests(output / "small") == before | expected


def test_a_kill_of_a_job_with_workers_of_its_own(forks: Forks, raw: Path, tmp_path: Path) -> None:
    output, fresh = tmp_path / "out", tmp_path / "fresh"
    places = (f"--source={raw}", f"--output={output}", *SMALL_ARGUMENTS)
    process = started(tmp_path / "log", "beam.ingest", *places, *TWO_WORKERS)
    until(lambda: any(output.glob("small/.staging-*/dataset/*.tfrecord-*")), "a first shard")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    killed = _published(output)
    for folder in (output, fresh):
        assert forks.job("beam.ingest", *_arguments(raw, folder)).returncode == 0
    # It may have published before the signal came.
    assert killed in ({}, published_digests(fresh / "small"))
    assert published_digests(output) == published_digests(fresh)
