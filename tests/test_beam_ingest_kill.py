"""The job is killed at random instants: nothing partial is seen, the next run ends well."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import IN_MEMORY, ROOT
from test_beam_ingest import published_bytes

ARGUMENTS = ["--name=small", "--height=32", "--width=48", "--block_length=1"]
TWO_WORKERS = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]


def _start(scenes: Path, output: Path, options: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "beam.ingest", f"--source={scenes}", f"--output={output}"),
            *ARGUMENTS,
            *options,
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@pytest.mark.parametrize(("kills", "options"), [(20, IN_MEMORY), (10, TWO_WORKERS)])
def test_killed_at_random_instants(
    scenes: Path, tmp_path: Path, kills: int, options: list[str]
) -> None:
    instants = random.Random(0)
    started = time.monotonic()
    assert _start(scenes, tmp_path / "undisturbed", options).wait() == 0
    duration = time.monotonic() - started
    (undisturbed,) = (tmp_path / "undisturbed/small").iterdir()
    expected = published_bytes(undisturbed)

    interrupted = 0
    output = tmp_path / "out"
    for _ in range(kills):
        process = _start(scenes, output, options)
        time.sleep(instants.uniform(0.3, 1) * duration)
        alive = process.poll() is None
        if alive:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        visible = [path for path in output.glob("small/*") if not path.name.startswith(".")]
        # Where it was quicker than the signal, all of it is there.
        assert [published_bytes(path) for path in visible] == [expected] * len(visible)
        interrupted += alive and not visible

        assert _start(scenes, output, IN_MEMORY).wait() == 0
        (recovered,) = (output / "small").iterdir()
        assert published_bytes(recovered) == expected
        shutil.rmtree(recovered)
    assert interrupted >= kills // 2
