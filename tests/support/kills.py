"""Kills of jobs: at each of their changes to the file system, or at random instants."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator

from forks import Point


class Killed(BaseException):
    """Stands in for SIGKILL, since no code catches it; but `finally` blocks do run."""


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
