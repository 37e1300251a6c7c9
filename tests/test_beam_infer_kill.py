"""The job is killed at random instants: readers see whole tables, the next run ends well."""

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
from test_beam_infer_resume import _tables

from beam import infer
from beam.pipeline import pipeline_options
from beam.runs import TABLES
from model.export import export_openvino
from schemas.config import InferConfig

TWO_WORKERS = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
CONFIG = InferConfig(height=32, width=48, part_mib=0.004)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain file with its graph beside it: the job starts fast."""
    import keras

    from model.unet import unet

    keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp("model") / "plain.keras"
    unet(13, filters=2).save(path)
    export_openvino(path, path.parent / "openvino")
    return path


def _start(model: Path, scenes: Path, output: Path, options: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "beam.infer", f"--model={model}", f"--source={scenes}"),
            *(f"--output={output}", "--height=32", "--width=48", "--part_mib=0.004", *options),
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@pytest.mark.parametrize(("kills", "options"), [(20, IN_MEMORY), (6, TWO_WORKERS)])
def test_killed_at_random_instants(
    model: Path, scenes: Path, tmp_path: Path, kills: int, options: list[str]
) -> None:
    instants = random.Random(0)
    started = time.monotonic()
    assert _start(model, scenes, tmp_path / "undisturbed", options).wait() == 0
    duration = time.monotonic() - started
    expected = _tables(tmp_path / "undisturbed")
    assert len(expected) > 10

    interrupted = 0
    output = tmp_path / "out"
    for _ in range(kills):
        process = _start(model, scenes, output, options)
        time.sleep(instants.uniform(0.3, 1) * duration)
        alive = process.poll() is None
        if alive:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        found = _tables(output)
        for table in TABLES:
            files = {name for name in expected if name.startswith(f"{table}/")}
            assert {name for name in found if name.startswith(f"{table}/")} in (set(), files)
        assert all(expected[name] == data for name, data in found.items())
        interrupted += alive and len(found) < len(expected)

        infer.run(
            str(model), str(scenes), None, str(output), CONFIG, options=pipeline_options(IN_MEMORY)
        )
        assert _tables(output) == expected
        left = [path.name for path in output.iterdir() if path.name not in TABLES]
        assert left == []
        shutil.rmtree(output)
    assert interrupted >= kills // 2
