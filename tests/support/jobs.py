"""What tests of all packages use: constants, and jobs run as a user runs them."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from schemas.config import GateConfig, IngestConfig, TrainConfig

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared/data/lyft"

SMALL = IngestConfig(
    name="small", height=32, width=48, resize="nearest", block_length=1, max_leak=1
)
"""Small images, split one by one, and none left out: 40 of them give 32, 4 and 4."""

SMALL_ARGUMENTS = [
    f"--{name}={value}" for name, value in SMALL.model_dump(exclude_defaults=True).items()
]
"""The same on a command line."""

ANY_MODEL = GateConfig(floor=0)
"""Lets the first version become champion, however poor it is."""

QUICK: dict[str, str | int] = {
    "epochs": 1,
    "architecture": "unet",
    "filters": 2,
    "normalisation": "none",
    "augment": "off",
    "loss": "cross-entropy",
}
"""Parameters of a training whose network is not the point: it is traced in half the time."""

RETRIED = re.compile(r"Retry \d+/\d+ will start")
"""What Prefect logs when it tries a task again; its client has other words for its own requests."""

Job = Callable[..., subprocess.CompletedProcess[str]]


IN_MEMORY = ["--direct_running_mode=in_memory", "--direct_num_workers=1"]
"""Runs Beam in the test's own process, without starting workers."""


TWO_WORKERS = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
"""Runs Beam in two processes beside the test's."""


@dataclass(frozen=True)
class Trained:
    """A registered model of the small dataset."""

    model: str
    tracking_uri: str
    config: TrainConfig

    @property
    def version(self) -> str:
        """The version as written in partitions."""
        return f"v{self.model.rpartition('/')[2]}"


def copy_store(store_folder: Path, folder: Path) -> None:
    """Copies an MLflow store with its files; the copy refers to its own files."""
    shutil.copytree(store_folder, folder, ignore=shutil.ignore_patterns("mlflow.db*"))
    with (
        closing(sqlite3.connect(store_folder / "mlflow.db")) as ours,
        closing(sqlite3.connect(folder / "mlflow.db")) as theirs,
    ):
        dump = "\n".join(ours.iterdump())
        theirs.executescript(dump.replace(str(store_folder), str(folder)))


def python(
    *arguments: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs this Python to completion, whatever its exit code."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def flip_bit(file: Path) -> None:
    """Damages a file without changing its size."""
    data = bytearray(file.read_bytes())
    data[1000] ^= 1
    file.write_bytes(data)


def on_small_disk(folder: Path, then: str = '"$@"') -> list[str]:
    """Prefix for a command that runs it with a file system of a few pages mounted at ``folder``.

    Args:
        then: shell command to run after mounting; only it and its children see the mount.
    """
    folder.mkdir()
    mount = f"mount -t tmpfs -o size=64k tmpfs {folder}"
    enter = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*enter, mount], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets no process mount a file system of its own")
    return [*enter, f"{mount} && {then}", "sh"]


def started(log: Path, module: str, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
    """Starts ``python -m module …`` in its own process group; its output is appended to ``log``."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env={**os.environ, **variables},
        )
