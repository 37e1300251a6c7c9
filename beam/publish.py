"""Publishing the tables of one partition: one job at a time, each table in one step, all or none.

Nothing on a file system swaps several folders at once. So what is to be published is first moved
out of the staging folder, complete, by one rename: from then on it will be published, if not by
this job, then by the next one that starts on the same output. Each table's folder is then swapped
with what was there; ``runs`` comes last.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from beam import storage
from beam.pipeline import say
from beam.runs import TABLES

_GRACE_S = 0.1
_PENDING = ".publish-"
_PARTITION = "partition"
_NEW = ".new"
"""In a table's folder: it has not been put in its place yet, or only just."""


@contextmanager
def partition_lock(root: Path, partition: str) -> Iterator[None]:
    """Holds a partition for one job; a second one waits, and finds what the first has published.

    What a killed job left half published is completed first, in this partition and in others, and
    what it left in staging is removed.
    """
    storage.remove_dead_staging(root)
    for pending in sorted(root.glob(f"{_PENDING}*")):
        left = _partition_of(pending)
        if left is None:
            # All of it was published, and a killed job was about to remove what is left.
            shutil.rmtree(pending, ignore_errors=True)
        elif left != partition:
            with storage.lock(_lock_file(root, left), wait=False) as held:
                if held:
                    _complete(pending, root, left)
    path = _lock_file(root, partition)
    with storage.lock(path, wait=False) as held:
        if held:
            _complete(_pending(root, partition), root, partition)
            yield
            return
    say(f"another job writes {partition}: waiting for its end")
    with storage.lock(path, wait=True):
        _complete(_pending(root, partition), root, partition)
        yield


def publish(staged: Path, root: Path, partition: str) -> None:
    """Puts each table in its place; the partition is locked.

    Args:
        staged: folder of the tables, one folder each, and of nothing else.
    """
    for table in TABLES:
        (staged / table / _NEW).touch()
    (staged / _PARTITION).write_text(partition, encoding="utf-8")
    pending = _pending(root, partition)
    staged.rename(pending)
    _complete(pending, root, partition)


def _complete(pending: Path, root: Path, partition: str) -> None:
    """Publishes what is pending, from wherever a killed job has left off."""
    if not pending.is_dir():
        return
    for table in TABLES:
        final = root / table / partition
        if (pending / table / _NEW).exists():
            storage.swap(pending / table, final)
        (final / _NEW).unlink(missing_ok=True)
    # Who has just opened an old folder to list it shall not find it empty.
    time.sleep(_GRACE_S)
    shutil.rmtree(pending)


def _pending(root: Path, partition: str) -> Path:
    return root / f"{_PENDING}{_digest(partition)}"


def _lock_file(root: Path, partition: str) -> Path:
    return root / f".lock-{_digest(partition)}"


def _digest(partition: str) -> str:
    return hashlib.sha256(partition.encode()).hexdigest()[:16]


def _partition_of(pending: Path) -> str | None:
    try:
        return (pending / _PARTITION).read_text(encoding="utf-8")
    except OSError:
        return None
