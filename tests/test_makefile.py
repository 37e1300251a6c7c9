"""Commands of the Makefile, run with a stub of python that records its calls."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from jobs import ROOT

from flows.flink_demo import ROOT as ROOT_OF_DEMO

NOTES = """#!/bin/sh
echo "$@" >> notes
test -d outputs || echo "outputs are gone" >> notes
exit $(cat code)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).touch()
    (tmp_path / "code").write_text("0")
    for folder in (".venv/bin", "outputs/datasets", ".mypy_cache", "data/raw"):
        (tmp_path / folder).mkdir(parents=True)
    python = tmp_path / ".venv/bin/python"
    python.write_text(NOTES)
    python.chmod(0o755)
    (tmp_path / ".venv/.ready").touch()
    return tmp_path


def make(project: Path, *arguments: str) -> tuple[int, list[str]]:
    """Runs make; returns its exit code and the arguments of each call of our python."""
    (project / "notes").unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    done = subprocess.run(
        ["make", *arguments], cwd=project, env=environment, capture_output=True, check=False
    )
    notes = project / "notes"
    return done.returncode, notes.read_text().splitlines() if notes.exists() else []


STOPPED = ["-m flows.local down", "-m flows.flink down"]


def test_clean_stops_servers_and_keeps_outputs(project: Path) -> None:
    assert make(project, "clean") == (0, STOPPED)
    left = {path.name for path in project.iterdir()} - {"notes"}
    assert left == {"Makefile", "requirements.lock", "pyproject.toml", "code", "outputs", "data"}
    assert (project / "outputs/datasets").is_dir()
    assert make(project, "clean") == (0, [])


def test_stop_includes_the_cluster_of_a_killed_demo(project: Path) -> None:
    cluster = f"{ROOT_OF_DEMO}/cluster"
    (project / cluster).mkdir(parents=True)
    assert make(project, "stop") == (0, [*STOPPED, f"-m flows.flink down --root={cluster}"])


def test_outputs_are_removed_by_name_only_and_after_servers_have_stopped(project: Path) -> None:
    (project / "code").write_text("2")
    code, notes = make(project, "clean-outputs")
    assert (code, notes) == (2, STOPPED[:1])
    assert (project / "outputs/datasets").is_dir()
    (project / "code").write_text("0")
    assert make(project, "clean-outputs") == (0, STOPPED)
    assert not (project / "outputs").exists()
    assert (project / ".venv").is_dir()


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        (["up"], "-m flows.local up"),
        (["up", "RAW=my images"], "-m flows.local up --raw my images"),
        (["down"], "-m flows.local down"),
        (["bench"], "benchmarks/ingest.py"),
        (["bench", "RAW=x"], "benchmarks/ingest.py --raw x"),
        (
            ["bench", "BENCH=infer", "RAW=x", "MODEL=m.keras", "ARGS=--counts 500 1300"],
            "benchmarks/infer.py --raw x --model m.keras --counts 500 1300",
        ),
        (["bench", "BENCH=gpu", "RAW=x"], "benchmarks/gpu.py"),
        (["bench", "BENCH=tables", "RAW=x"], "benchmarks/tables.py"),
    ],
)
def test_make_passes_variables_on(project: Path, arguments: list[str], call: str) -> None:
    assert make(project, *arguments) == (0, [call])
