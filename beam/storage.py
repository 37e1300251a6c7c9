"""Read, stage, publish: the only raw file IO of the Beam jobs.

Sources are local paths or any URI that Beam's file systems know; outputs are local folders.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from schemas.errors import UserError
from schemas.layout import STAGING_PREFIX

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file below the source root: its path from there, its size in bytes, its last change."""

    path: str
    size: int
    modified: float


def is_remote(uri: str) -> bool:
    """True for a URI with a scheme, which Beam's file systems open."""
    return "://" in uri


def absolute(uri: str) -> str:
    """The same place, whatever the working directory of the process that reads it."""
    return uri.rstrip("/") if is_remote(uri) else os.path.abspath(uri)


def join(root: str, path: str) -> str:
    """A file below ``root``."""
    return f"{root}/{path}"


def read_bytes(uri: str) -> bytes:
    """The whole file."""
    if not is_remote(uri):
        with open(uri, "rb") as file:
            return file.read()
    from apache_beam.io.filesystems import FileSystems

    with FileSystems.open(uri, compression_type="uncompressed") as file:
        data: bytes = file.read()
        return data


def modified(uri: str) -> float | None:
    """Time of a local file's last change, in seconds since the epoch; None for a remote one."""
    return None if is_remote(uri) else os.stat(uri).st_mtime


def require_folder(uri: str, what: str) -> None:
    """Raises UserError unless there is such a folder."""
    if is_remote(uri):
        from apache_beam.io.filesystems import FileSystems

        try:
            found = any(result.metadata_list for result in FileSystems.match([f"{uri}/**"], [1]))
        except (ValueError, OSError) as error:
            raise UserError(f"{what} {uri!r} cannot be listed: {error}") from error
    else:
        found = os.path.isdir(uri)
    if not found:
        raise UserError(f"{what} {uri!r}: there is no such folder")


def walk(root: str) -> Iterator[SourceFile]:
    """All files below a folder, one at a time, hidden ones left out; links are followed once."""
    if is_remote(root):
        yield from _walk_remote(root)
        return
    folders = [""]
    seen: set[tuple[int, int]] = set()
    while folders:
        folder = folders.pop()
        for entry in _entries(os.path.join(root, folder)):
            if entry.name.startswith("."):
                continue
            path = f"{folder}/{entry.name}" if folder else entry.name
            try:
                status = entry.stat()
            except OSError:
                # A link that leads nowhere, or to itself.
                continue
            if stat.S_ISDIR(status.st_mode):
                if (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    folders.append(path)
            elif stat.S_ISREG(status.st_mode):
                yield SourceFile(path, status.st_size, status.st_mtime)


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        entries = os.scandir(folder)
    except OSError as error:
        raise UserError(f"folder {folder!r} cannot be listed: {error.strerror}") from error
    with entries:
        yield from entries


def _walk_remote(root: str) -> Iterator[SourceFile]:
    from apache_beam.io.filesystems import FileSystems

    for result in FileSystems.match([f"{root}/**"]):
        for found in result.metadata_list:
            path = found.path[len(root) + 1 :]
            if not any(part.startswith(".") for part in path.split("/")):
                yield SourceFile(path, found.size_in_bytes, found.last_updated_in_seconds)


def sha256(data: bytes) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: str | Path) -> str:
    """Hex digest of a local file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_output(output: str) -> Path:
    """The output folder, made where it is missing.

    Raises:
        UserError: it cannot be made or written to.
    """
    if is_remote(output):
        raise UserError(f"output {output!r}: expected a local folder, found a URI")
    folder = Path(output).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"output {output!r} is not writable: {error.strerror}") from error
    return folder


@contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """A folder for work in progress below ``parent``, gone when the block ends.

    A killed process leaves its folder behind; the next one that stages there removes it. Who is
    alive is told by a lock on a file beside the folder, which dies with its process.
    """
    parent.mkdir(parents=True, exist_ok=True)
    remove_dead_staging(parent)
    lock = _locked_file(parent)
    folder = Path(lock.name).with_suffix("")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.unlink(lock.name)
        lock.close()


def remove_dead_staging(parent: Path) -> None:
    """Removes the staging folders below ``parent`` whose process is gone."""
    for path in parent.glob(f"{STAGING_PREFIX}*.lock"):
        with open(path, "a") as lock:
            if not _try_lock(lock):
                continue
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink(missing_ok=True)


def _locked_file(parent: Path) -> IO[bytes]:
    while True:
        lock = tempfile.NamedTemporaryFile(  # noqa: SIM115 - lives as long as the staging folder
            dir=parent, prefix=STAGING_PREFIX, suffix=".lock", delete=False
        )
        # Another process may take the fresh file for a dead one before it is locked.
        if _try_lock(lock) and os.path.exists(lock.name):
            return lock
        lock.close()


def _try_lock(file: IO[bytes] | IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def lock(path: Path, *, wait: bool) -> Iterator[bool]:
    """Holds a lock that dies with its process; its file is gone when the block ends.

    Args:
        wait: until whoever holds it lets go; else the block runs at once.

    Yields:
        Whether the lock is held.
    """
    while True:
        file = open(path, "a")  # noqa: SIM115 - the lock lives as long as it is open
        if not _try_lock(file):
            if not wait:
                file.close()
                yield False
                return
            fcntl.flock(file, fcntl.LOCK_EX)
        # Who held it before has removed the file, and another may have made a new one.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                break
        file.close()
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        file.close()


def publish(staged: Path, final: Path) -> None:
    """Puts a staged folder in its final place in one step, in place of what was there.

    Readers see the whole old folder or the whole new one. Both must be on one file system.
    """
    swap(staged, final)
    shutil.rmtree(staged, ignore_errors=True)


def swap(staged: Path, final: Path) -> None:
    """As ``publish``, but what was in the final place is in the staged one afterwards."""
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(staged, final)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        _exchange(staged, final)


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
    # A network file system may not know the swap: readers see a gap between two renames.
    aside = first.with_name(f"{first.name}-replaced")
    os.rename(second, aside)
    os.rename(first, second)
    os.rename(aside, first)


def copy_or_link(source: Path, target: Path) -> None:
    """The same bytes under another name; a hard link where the file system allows one."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
