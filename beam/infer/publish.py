"""Publishes the tables of one partition, all of them or none.

On a local file system, a lock lets one job at a time publish a partition. No file system can swap
several folders at once. So one rename first moves all tables out of the staging folder (a commit);
this job, or else the next job on the same output, then swaps each table's folder with the published
one, ``runs`` last.

An object store has neither locks nor renames. There, a job uploads its files beside the published
ones, under unique names. It then replaces the row of ``runs``; this single put publishes all files.
If several jobs publish at once, the last one wins, with all its files.
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
from schemas.layout import LEGACY_FOLDERS
from schemas.published import RUN_FILE, checksums, run_file

_DATA_TABLES = tuple(table for table in TABLES if table != "runs")
_GRACE_S = 0.1
_PENDING = ".publish-"
_PARTITION = "partition"
_NEW = ".new"
"""File in a table's folder until just after the folder was swapped into place."""


@contextmanager
def partition_lock(place: str, partition: str) -> Iterator[None]:
    """Locks a partition for one job; a second job waits, and then sees what the first published.

    Also cleans up after killed jobs and earlier versions: completes the publishing of this and
    other partitions, removes staging folders, and renames folders of tables. On a store, it locks
    nothing and removes staging folders alone.
    """
    staging.remove_dead_staging(place)
    if is_remote(place):
        yield
        return
    root = Path(place)
    _move_former_folders(root)
    for pending in sorted(root.glob(f"{_PENDING}*")):
        other = _partition_of(pending)
        if other is None:
            # Everything was published; the job was killed while removing the leftovers.
            shutil.rmtree(pending, ignore_errors=True)
        elif other != partition:
            with lock(_lock_file(root, other), wait=False) as acquired:
                if acquired:
                    try:
                        _complete(pending, root, other)
                    except OSError as error:
                        # The next job of that partition fails with this error; this job goes on.
                        log(f"cannot complete what a killed job published in {other}: {error}")
    path = _lock_file(root, partition)
    with lock(path, wait=False) as acquired:
        if acquired:
            _complete(_pending(root, partition), root, partition)
            yield
            return
    log(f"another job is publishing {partition}: waiting for it")
    with lock(path, wait=True):
        _complete(_pending(root, partition), root, partition)
        yield


def unique_suffix(root: str) -> str:
    """Suffix for the names of a job's files on a store, which no other job uses; else empty."""
    return uuid.uuid4().hex[:8] if is_remote(root) else ""


def publish(tables: str, place: str, partition: str, suffix: str = "") -> None:
    """Publishes the staged tables; the caller holds the partition's lock.

    Args:
        tables: staged folder that holds one folder per table, and nothing else.
        suffix: as given to ``runs.write_run``.
    """
    if is_remote(place):
        _publish_on_store(tables, place, partition, suffix)
        return
    staged, root = Path(tables), Path(place)
    for table in TABLES:
        (staged / table / _NEW).touch()
    (staged / _PARTITION).write_text(partition, encoding="utf-8")
    # Made before the rename, after which nothing may fail that would fail for the next job too.
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
    for table, former in LEGACY_FOLDERS.items():
        if (pending / former).is_dir():
            os.rename(pending / former, pending / table)
    for table in TABLES:
        final = root / table / partition
        if (pending / table / _NEW).exists():
            staging.swap(pending / table, final)
        (final / _NEW).unlink(missing_ok=True)
    # Lets readers that have just opened an old folder list it.
    time.sleep(_GRACE_S)
    for table in TABLES:
        shutil.rmtree(pending / table, ignore_errors=True)
    # Without the file that names the partition, jobs of other partitions may remove the rest, too.
    shutil.rmtree(pending, ignore_errors=True)


def _move_former_folders(root: Path) -> None:
    """Renames folders of tables of an earlier version; removes those published again since."""
    for table, name in LEGACY_FOLDERS.items():
        former = root / name
        for partition in sorted(former.glob("model=*/version=*/source=*")):
            final = root / table / partition.relative_to(former)
            final.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.rename(partition, final)
            except FileNotFoundError:
                continue  # Another job has moved it.
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                shutil.rmtree(partition, ignore_errors=True)
        for folder, _, _ in os.walk(former, topdown=False):
            with suppress(OSError):
                os.rmdir(folder)


def _publish_on_store(tables: str, root: str, partition: str, suffix: str) -> None:
    replaced: set[str] = set()
    with suppress(OSError, ValueError):
        replaced.update(checksums(root, partition))
    moves = {
        join(tables, table, file.path): join(root, table, partition, with_suffix(file.path, suffix))
        for table in _DATA_TABLES
        for file in listing.files(join(tables, table))
    }
    storage.map_concurrently(lambda staged: storage.copy(staged, moves[staged]), moves)
    storage.copy(join(tables, "runs", RUN_FILE), run_file(root, partition))
    published = set(moves.values())
    storage.map_concurrently(storage.remove, replaced - published)
    for table in _DATA_TABLES:
        folder = join(root, table, partition)
        for file in listing.files(folder):
            # Left by a job that was killed while publishing; a recent one may be a running job's.
            place = join(folder, file.path)
            if place not in published and staging.is_abandoned(file.modified):
                storage.remove(place)


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
