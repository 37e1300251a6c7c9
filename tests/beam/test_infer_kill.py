"""The job is killed at random instants: readers see whole tables, and the next run succeeds."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from inference import tables_of
from jobs import IN_MEMORY, TWO_WORKERS, started
from kills import killed_at_random_instants

from beam import infer
from beam.pipeline import pipeline_options
from beam.runs import TABLES
from schemas.config import InferConfig

ARGUMENTS = ["--height=32", "--width=48", "--part_mib=0.004"]
CONFIG = InferConfig(height=32, width=48, part_mib=0.004)


@pytest.mark.parametrize(("kills", "options"), [(20, IN_MEMORY), (6, TWO_WORKERS)])
def test_killed_at_random_instants(
    plain_model: Path, scenes: Path, tmp_path: Path, kills: int, options: list[str]
) -> None:
    def start(output: Path) -> subprocess.Popen[bytes]:
        places = (f"--model={plain_model}", f"--source={scenes}", f"--output={output}")
        return started(tmp_path / "log", "beam.infer", *places, *ARGUMENTS, *options)

    begun = time.monotonic()
    assert start(tmp_path / "undisturbed").wait() == 0
    duration = time.monotonic() - begun
    expected = tables_of(tmp_path / "undisturbed")
    assert len(expected) > 10

    output = tmp_path / "out"
    for _ in killed_at_random_instants(
        lambda: start(output), lambda: len(tables_of(output)) == len(expected), kills, duration
    ):
        found = tables_of(output)
        for table in TABLES:
            files = {name for name in expected if name.startswith(f"{table}/")}
            assert {name for name in found if name.startswith(f"{table}/")} in (set(), files)
        assert all(expected[name] == data for name, data in found.items())
        alone = pipeline_options(IN_MEMORY)
        infer.run(str(plain_model), str(scenes), None, str(output), CONFIG, options=alone)
        assert tables_of(output) == expected
        left = [path.name for path in output.iterdir() if path.name not in TABLES]
        assert left == []
        shutil.rmtree(output)
