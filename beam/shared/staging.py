"""Staging folders for unpublished work, and the atomic rename or ordered copy that publishes it.

On a local file system, one rename publishes a whole folder. An object store cannot rename, so files
are copied one by one, and the file that names all others comes last.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from runtime import listing, storage
from runtime.background import repeating
from runtime.errors import UserError
from runtime.locks import try_lock
from runtime.storage import is_remote, join
from schemas.layout import STAGING_PREFIX

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2

_ABANDONED_AFTER_S = 7 * 24 * 3600
"""Age, in seconds, at which unpublished files on a store cannot belong to a running job."""

_HEARTBEAT = "heartbeat"
"""Name of the object that a running job rewrites in its staging folder on a store."""

_HEARTBEAT_S, _HEARTBEAT_TIMEOUT_S = 300.0, 24 * 3600
"""Seconds between two heartbeats, and since the last one of a job that counts as dead."""

_TIME_FORMAT = "%Y%m%dT%H%M%S"


def make_output(output: str) -> str:
    """The output folder; it is created if it is missing, and checked to be writable.

    Raises:
        UserError: it cannot be created or written to.
    """
    if is_remote(output):
        storage.require_writable(output.rstrip("/"))
        return output.rstrip("/")
    folder = Path(storage.absolute(output))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"output {output!r} is not writable: {error.strerror}") from error
    return str(folder)


def make_folders(*folders: str) -> None:
    """Creates local folders; a store needs none."""
    for folder in folders:
        if not is_remote(folder):
            Path(folder).mkdir(parents=True)


def empty_folders(*folders: str) -> None:
    """Empties folders below the staging folder."""
    for folder in folders:
        if is_remote(folder):
            storage.remove_tree(folder)
        else:
            shutil.rmtree(folder)
    make_folders(*folders)


@contextmanager
def staging_folder(parent: str) -> Iterator[str]:
    """A folder for unpublished work below ``parent``, removed when the block ends.

    A killed process leaves its folder behind; the next process that stages there removes it. It
    recognises a running process by the lock on a file beside the folder, which ends with the
    process, or on a store by the heartbeat.
    """
    remove_dead_staging(parent)
    if is_remote(parent):
        started = f"{datetime.now(UTC):{_TIME_FORMAT}}"
        folder = join(parent, f"{STAGING_PREFIX}{started}-{uuid.uuid4().hex[:8]}")
        try:
            with _heartbeat(folder):
                yield folder
        finally:
            # A later job removes it as a dead job's folder if this fails.
            with suppress(UserError):
                storage.remove_tree(folder)
        return
    Path(parent).mkdir(parents=True, exist_ok=True)
    lock = _locked_file(Path(parent))
    path = Path(lock.name).with_suffix("")
    path.mkdir()
    try:
        yield str(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.unlink(lock.name)
        lock.close()


@contextmanager
def local_work_folder(staging: str) -> Iterator[Path]:
    """A local folder for files that only this machine reads: the staging folder if it is local."""
    if not is_remote(staging):
        yield Path(staging)
        return
    with tempfile.TemporaryDirectory(prefix="lyft-") as folder:
        yield Path(folder)


def remove_dead_staging(parent: str) -> None:
    """Removes the staging folders below ``parent`` whose process has ended."""
    if is_remote(parent):
        for name in listing.folders(parent):
            if name.startswith(STAGING_PREFIX) and _is_dead(join(parent, name)):
                storage.remove_tree(join(parent, name))
        return
    for path in Path(parent).glob(f"{STAGING_PREFIX}*.lock"):
        with open(path, "a") as lock:
            if not try_lock(lock):
                continue
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink(missing_ok=True)


def is_abandoned(modified: float) -> bool:
    """True if an object last written at this time (epoch seconds) cannot be a running job's."""
    return time.time() - modified > _ABANDONED_AFTER_S


@contextmanager
def _heartbeat(folder: str) -> Iterator[None]:
    """Rewrites the heartbeat of a staging folder on a store while the block runs."""

    def beat() -> None:
        # A store that is away now may answer at the next beat.
        with suppress(UserError, OSError):
            storage.write_bytes(join(folder, _HEARTBEAT), b"")

    beat()
    # A beat after the folder's removal would bring it back.
    with repeating(beat, _HEARTBEAT_S):
        yield


def _is_dead(folder: str) -> bool:
    with suppress(OSError):
        return time.time() - storage.modified(join(folder, _HEARTBEAT)) > _HEARTBEAT_TIMEOUT_S
    started = folder.rpartition(STAGING_PREFIX)[2].partition("-")[0]
    try:
        time_of_start = datetime.strptime(started, _TIME_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return False
    return is_abandoned(time_of_start.timestamp())


def _locked_file(parent: Path) -> IO[bytes]:
    while True:
        lock = tempfile.NamedTemporaryFile(  # noqa: SIM115 - lives as long as the staging folder
            dir=parent, prefix=STAGING_PREFIX, suffix=".lock", delete=False
        )
        # Until it is locked, another process may take it for a dead job's file and remove it.
        if try_lock(lock) and os.path.exists(lock.name):
            return lock
        lock.close()


def publish(staged: str, final: str, last: str) -> None:
    """Publishes a staged folder as ``final``, replacing the folder that is there.

    On a local file system, readers see the whole old folder or the whole new one; both must be on
    the same file system. On a store, a folder counts as published once its file ``last`` exists.
    """
    if is_remote(final):
        names = [file.path for file in listing.files(staged)]
        storage.map_concurrently(
            lambda name: storage.copy(join(staged, name), join(final, name)),
            [name for name in names if name != last],
        )
        storage.copy(join(staged, last), join(final, last))
        return
    sync(Path(staged))
    swap(Path(staged), Path(final))
    shutil.rmtree(staged, ignore_errors=True)


def sync(folder: Path) -> None:
    """Flushes a folder's files and names to the disk (fsync).

    Otherwise a power cut soon after a rename may leave the new name and empty files.
    """
    for base, _, names in os.walk(folder):
        for path in (*(os.path.join(base, name) for name in names), base):
            sync_path(path)


def sync_path(path: str) -> None:
    """Flushes a file, or the names in a folder, to the disk (fsync)."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def swap(staged: Path, final: Path) -> None:
    """Like ``publish`` on a local file system, but leaves the replaced folder at ``staged``.

    The caller syncs the staged folder before.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(staged, final)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        _exchange(staged, final)
    sync_path(str(final.parent))


def _exchange(first: Path, second: Path) -> None:
    """Swaps two folders atomically (Linux's renameat2; Python has no call for it)."""
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.renameat2(
        _AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE
    )
    if result == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), str(second))
    # Some network file systems cannot swap: readers see a gap between the first two renames.
    replaced = first.with_name(f"{first.name}-replaced")
    os.rename(second, replaced)
    os.rename(first, second)
    os.rename(replaced, first)


def copy_or_link(source: str, target: str) -> None:
    """Copies a file, or makes a hard link where the file system allows one."""
    if not is_remote(target):
        with suppress(OSError):
            os.link(source, target)
            return
    storage.copy(source, target)
