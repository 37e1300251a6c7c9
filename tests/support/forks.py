"""Runs a user's commands in forks of one process: real processes that need not import anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jobs import ROOT

Point = tuple[str, int]
"""A change to the file system, as ``forked.kind_of`` names it, and which of its occurrences."""


class Forks:
    """Runs ``python -m module …`` as a child of a process that has imported the module."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._folder = folder

    def job(self, module: str, *argv: str) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end, with the environment that this process has now."""
        return self._run(module, argv)

    def killed(self, point: Point, root: Path, module: str, *argv: str) -> int:
        """Exit code of a job killed before a change below ``root``: -9, if it gets there."""
        return self._run(module, argv, (str(root), point, os.devnull)).returncode

    def changes(self, root: Path, module: str, *argv: str) -> list[str]:
        """Runs a job undisturbed; returns its changes to the file system below ``root``."""
        record = self._folder / "changes"
        done = self._run(module, argv, (str(root), None, str(record)))
        assert done.returncode == 0, done.stderr
        return record.read_text(encoding="utf-8").splitlines()

    def _run(
        self, module: str, argv: Sequence[str], watched: tuple[str, Point | None, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        files = {name: self._folder / name for name in ("stdout", "stderr")}
        for file in files.values():
            file.write_text("")
        command = {
            "module": module,
            "argv": argv,
            "env": dict(os.environ),
            "watched": watched,
            **{name: str(file) for name, file in files.items()},
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        said = {name: file.read_text(encoding="utf-8") for name, file in files.items()}
        return subprocess.CompletedProcess([module, *argv], code, **said)


@contextmanager
def forks(folder: Path) -> Iterator[Forks]:
    """Runs such a process during a block; what commands print goes through files in ``folder``."""
    program = Path(__file__).with_name("forked.py")
    with subprocess.Popen(
        [sys.executable, str(program)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Forks(process, folder)
        finally:
            process.kill()
