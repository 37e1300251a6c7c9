"""Publishes the tables of one partition, all of them or none.

On a local file system, one job at a time publishes a partition, each table in one step. No file
system can swap several folders at once, so the complete tables are first moved out of the staging
folder by a single rename. From then on they will be published: by this job, or else by the next
job that starts on the same output. The folder of each table is then swapped with the published
one; ``runs`` comes last.

An object store has neither locks nor renames. There, a job uploads its files beside the published
ones, under names that no other job uses. It then replaces the row of ``runs``, and that single put
publishes all the files. If several jobs publish at once, the last one wins, with all its files.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from beam.infer.runs import TABLES, with_suffix
from beam.shared import staging
from runtime import listing, storage
from runtime.command_line import log
from runtime.locks import lock
from runtime.storage import is_remote, join
from schemas.layout import FORMER_FOLDERS
from schemas.published import RUN_FILE, checksums, run_file

_GRACE_S = 0.1
_PENDING = ".publish-"
_PARTITION = "partition"
_NEW = ".new"
"""Marks a table's folder that has not been swapped into place yet, or only just."""


@contextmanager
def partition_lock(place: str, partition: str) -> Iterator[None]:
    """Locks a partition for one job; a second job waits, and then sees what the first published.

    On a store, nothing is locked.

    First, tables that a killed job left half published are published completely, in this partition
    and in others, the staging folders of killed jobs are removed, and tables in folders of an
    earlier version get their present ones.
    """
    staging.remove_dead_staging(place)
    if is_remote(place):
        yield
        return
    root = Path(place)
    _move_former_folders(root)
    for pending in sorted(root.glob(f"{_PENDING}*")):
        left = _partition_of(pending)
        if left is None:
            # Everything was published; the job was killed while removing the leftovers.
            shutil.rmtree(pending, ignore_errors=True)
        elif left != partition:
            with lock(_lock_file(root, left), wait=False) as held:
                if held:
                    try:
                        _complete(pending, root, left)
                    except OSError as error:
                        # Its own next job fails with this error; the job of this one need not.
                        log(f"cannot complete what a killed job published in {left}: {error}")
    path = _lock_file(root, partition)
    with lock(path, wait=False) as held:
        if held:
            _complete(_pending(root, partition), root, partition)
            yield
            return
    log(f"another job is publishing {partition}: waiting for it")
    with lock(path, wait=True):
        _complete(_pending(root, partition), root, partition)
        yield


def unique_suffix(root: str) -> str:
    """Suffix for the names of a job's files on a store, so that they replace no other job's."""
    return uuid.uuid4().hex[:8] if is_remote(root) else ""


def publish(tables: str, place: str, partition: str, suffix: str = "") -> None:
    """Publishes the staged tables; the caller holds the partition's lock.

    Args:
        tables: staged folder that holds one folder per table, and nothing else.
        suffix: the suffix with which the staged row of ``runs`` was written.
    """
    if is_remote(place):
        _publish_on_store(tables, place, partition, suffix)
        return
    staged, root = Path(tables), Path(place)
    for table in TABLES:
        (staged / table / _NEW).touch()
    (staged / _PARTITION).write_text(partition, encoding="utf-8")
    # From the rename on, nothing may fail that fails again for the next job.
    for table in TABLES:
        (root / table / partition).parent.mkdir(parents=True, exist_ok=True)
    pending = _pending(root, partition)
    staging.sync(staged)
    staged.rename(pending)
    staging.sync_path(str(root))
    _complete(pending, root, partition)


def _complete(pending: Path, root: Path, partition: str) -> None:
    """Publishes pending tables, continuing where a killed job stopped."""
    if not pending.is_dir():
        return
    for table, former in FORMER_FOLDERS.items():
        if (pending / former).is_dir():
            os.rename(pending / former, pending / table)
    for table in TABLES:
        final = root / table / partition
        if (pending / table / _NEW).exists():
            staging.swap(pending / table, final)
        (final / _NEW).unlink(missing_ok=True)
    # A reader that has just opened an old folder to list it must not find it empty.
    time.sleep(_GRACE_S)
    for table in TABLES:
        shutil.rmtree(pending / table, ignore_errors=True)
    # Once the file that names the partition is gone, jobs of other partitions may remove the rest.
    shutil.rmtree(pending, ignore_errors=True)


def _move_former_folders(root: Path) -> None:
    """Moves tables of an earlier version; those that have been published since are removed."""
    for table, name in FORMER_FOLDERS.items():
        former = root / name
        for left in sorted(former.glob("model=*/version=*/source=*")):
            final = root / table / left.relative_to(former)
            final.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.rename(left, final)
            except FileNotFoundError:
                continue  # Another job has moved it.
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                shutil.rmtree(left, ignore_errors=True)
        for folder, _, _ in os.walk(former, topdown=False):
            with suppress(OSError):
                os.rmdir(folder)


def _publish_on_store(tables: str, root: str, partition: str, suffix: str) -> None:
    replaced: set[str] = set()
    with suppress(OSError, ValueError):
        replaced.update(checksums(root, partition))
    moves = {
        join(tables, table, file.path): join(root, table, partition, with_suffix(file.path, suffix))
        for table in TABLES
        if table != "runs"
        for file in listing.files(join(tables, table))
    }
    storage.each(lambda staged: storage.copy(staged, moves[staged]), moves)
    storage.copy(join(tables, "runs", RUN_FILE), run_file(root, partition))
    published = set(moves.values())
    storage.each(storage.remove, replaced - published)
    for table in TABLES:
        folder = join(root, table, partition)
        for file in listing.files(folder):
            # An old file was left by a job killed while publishing; a recent one may belong to a
            # running job.
            if (
                table != "runs"
                and join(folder, file.path) not in published
                and staging.is_abandoned(file.modified)
            ):
                storage.remove(join(folder, file.path))


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
