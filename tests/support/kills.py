"""Kills of jobs: at each of their changes to the file system, or at random instants."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs import ROOT

Point = tuple[str, int]
"""A change to the file system, as ``forked.kind_of`` names it, and which of its occurrences."""


class Forks:
    """Runs jobs in forks of one process, so that none of them waits for imports."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._record = folder / "changes.json"
        self.log = folder / "log"

    def run(self, job: str, root: Path, *argv: str, kill: Point | None = None) -> int:
        """Exit code of a job with its output below ``root``; -9 if it was killed before a point."""
        command = {
            "job": job,
            "argv": argv,
            "root": str(root),
            "kill": kill,
            "record": str(self._record),
            "log": str(self.log),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def changes(self, job: str, root: Path, *argv: str) -> list[str]:
        """Runs a job undisturbed; returns its changes to the file system, in order."""
        assert self.run(job, root, *argv) == 0, self.log.read_text()
        found: list[str] = json.loads(self._record.read_text())
        return found


def points(changes: list[str]) -> list[Point]:
    """The first and the last occurrence of each kind of change, in the order of the changes."""
    seen: Counter[str] = Counter()
    last = Counter(changes)
    found = []
    for kind in changes:
        seen[kind] += 1
        if seen[kind] in (1, last[kind]):
            found.append((kind, seen[kind]))
    return found


@contextmanager
def forks(folder: Path, *jobs: str) -> Iterator[Forks]:
    """A process that has imported these jobs' modules; logs are written to ``folder``."""
    program = Path(__file__).with_name("forked.py")
    with subprocess.Popen(
        [sys.executable, str(program), *jobs],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield Forks(process, folder)
        finally:
            process.kill()


def killed_at_random_instants(
    start: Callable[[], subprocess.Popen[bytes]],
    has_published: Callable[[], bool],
    kills: int,
    seconds: float,
) -> Iterator[bool]:
    """Starts jobs and kills their process groups until ``kills`` died before they had published.

    Args:
        seconds: how long the job takes undisturbed.

    Yields:
        After each job, whether it had published before it was killed.
    """
    instants = random.Random(0)
    for _ in range(6 * kills):
        process = start()
        instant = instants.uniform(0.3, 1) * seconds
        try:
            process.wait(instant)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        published = has_published()
        yield published
        # The machine's speed varies: adapts the next instants, so that they stay close to the end.
        seconds = instant if published else 1.1 * seconds
        kills -= not published
        if not kills:
            return
    raise AssertionError(f"{kills} more jobs should have been killed before they had published")
