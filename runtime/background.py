"""Work that a thread repeats beside a block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeating(work: Callable[[], None], interval_s: float) -> Iterator[None]:
    """Calls ``work`` every ``interval_s`` seconds while the block runs, and never after it."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(interval_s):
            work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
