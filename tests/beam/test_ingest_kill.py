"""The job is killed at random instants: no partial output is visible, and the next run succeeds."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from jobs import IN_MEMORY, TWO_WORKERS, started
from kills import killed_at_random_instants

from flows.flink_demo import published_bytes

ARGUMENTS = ["--name=small", "--height=32", "--width=48", "--block_length=1"]


@pytest.mark.parametrize(("kills", "options"), [(20, IN_MEMORY), (10, TWO_WORKERS)])
def test_killed_at_random_instants(
    scenes: Path, tmp_path: Path, kills: int, options: list[str]
) -> None:
    def start(output: Path, options: list[str] = options) -> subprocess.Popen[bytes]:
        places = (f"--source={scenes}", f"--output={output}")
        return started(tmp_path / "log", "beam.ingest", *places, *ARGUMENTS, *options)

    begun = time.monotonic()
    assert start(tmp_path / "undisturbed").wait() == 0
    duration = time.monotonic() - begun
    (undisturbed,) = (tmp_path / "undisturbed/small").iterdir()
    expected = published_bytes(undisturbed)

    output = tmp_path / "out"

    def visible() -> list[Path]:
        return [path for path in output.glob("small/*") if not path.name.startswith(".")]

    for published in killed_at_random_instants(
        lambda: start(output), lambda: bool(visible()), kills, duration
    ):
        # Either nothing is visible, or all of it.
        assert [published_bytes(path) for path in visible()] == [expected] * published
        assert start(output, IN_MEMORY).wait() == 0
        (recovered,) = (output / "small").iterdir()
        assert published_bytes(recovered) == expected
        shutil.rmtree(recovered)
