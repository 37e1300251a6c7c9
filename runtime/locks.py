"""Locks between processes on this machine; each is released when its process ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


def try_lock(file: IO[bytes] | IO[str]) -> bool:
    """Locks an open file until it is closed; returns False if another process holds the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def lock(path: Path, *, wait: bool) -> Iterator[bool]:
    """Holds a lock for a block, or until the process ends; removes its file after the block.

    Args:
        wait: whether to wait while another process holds the lock; if not, the block runs at once.

    Yields:
        Whether this process holds the lock.
    """
    while True:
        file = open(path, "a")  # noqa: SIM115 - the lock lives as long as it is open
        if not try_lock(file):
            if not wait:
                file.close()
                yield False
                return
            fcntl.flock(file, fcntl.LOCK_EX)
        # The previous holder has removed the file, and another process may have made a new one.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                break
        file.close()
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        file.close()
