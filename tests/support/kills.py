"""Kills of jobs, by chance or at a chosen step."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator


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
