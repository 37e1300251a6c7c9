"""Reads and writes files by a local path or the URI of an object store, ``s3://`` or ``gs://``.

On a store, files are written whole: a put makes all of an object visible, or nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from runtime import archive
from runtime.errors import UserError
from runtime.object_store import START_TIMEOUT_S, Place, bucket_and_key, request

OUTPUTS = "outputs"
"""Default root of all outputs."""

CONCURRENT_REQUESTS = 16
"""Threads that move many objects: each waits for the network, not for a core."""

_CHUNK = 8 << 20

_TRAILING = re.compile(r"(?<=[^:/])/+$")
"""Slashes at a place's end, but not those of ``s3://`` or the root folder."""

_MAX_NESTED_FOLDERS = 8
"""Nested folders that ``remove_tree`` can remove on a store."""


def is_remote(place: Place) -> bool:
    """Whether a place is a URI with a scheme."""
    return "://" in str(place)


def absolute(place: Place) -> str:
    """The same place, independent of the working directory; ``~`` is the home folder.

    A shell does not expand it in ``--source=~/raw``, nor do flows' parameters pass through one.

    Raises:
        UserError: it is empty, e.g. from an unset shell variable; it would mean this folder.
    """
    if not str(place):
        raise UserError("expected a folder or a URI, found an empty name")
    return (
        str(place).rstrip("/") if is_remote(place) else os.path.abspath(os.path.expanduser(place))
    )


def join(root: Place, *parts: str) -> str:
    """A place below ``root``, which may end with a slash."""
    return "/".join((_TRAILING.sub("", str(root)), *parts))


def local_root(root: Place) -> str:
    """Root of files that must be local: ``root`` itself, or ``outputs`` if ``root`` is a URI."""
    return OUTPUTS if is_remote(root) else os.path.expanduser(root)


def read_bytes(place: Place) -> bytes:
    """Reads a whole file, which may lie in an archive.

    Raises:
        OSError: the file does not exist or cannot be read.
        UserError: the store refuses.
        UnavailableError: the store does not answer.
    """
    if not is_remote(place):
        try:
            with open(place, "rb") as file:
                return file.read()
        except NotADirectoryError:
            return archive.read(str(place))
    if archive.above(place):
        return archive.read(str(place))

    def read(store: Any, key: str) -> bytes:
        with store.open_input_stream(key) as stream:
            return bytes(stream.read())

    return request(place, read)


def read_range(place: Place, offset: int, length: int) -> bytes:
    """Reads ``length`` bytes of a file on a store, from ``offset`` on."""

    def read(store: Any, key: str) -> bytes:
        with store.open_input_file(key) as file:
            return bytes(file.read_at(length, offset))

    return request(place, read)


def write_bytes(place: Place, data: bytes) -> None:
    """Writes a whole file; on a store, in one put."""
    if is_remote(place):
        request(place, lambda store, key: _put(store, key, data))
    else:
        Path(place).write_bytes(data)


@contextmanager
def writing(place: Place) -> Iterator[Path]:
    """Yields a local path to write to; when the block succeeds, the file is at ``place``.

    A local place is yielded as it is; on a store, the file is put whole after the block.
    """
    if not is_remote(place):
        yield Path(place)
        return
    with _scratch() as folder:
        path = folder / _name(place)
        yield path
        _upload(path, place)


@contextmanager
def local(place: Place) -> Iterator[Path]:
    """Yields a local path with a file's content; a local place is yielded as it is."""
    if not is_remote(place):
        yield Path(place)
        return
    with _scratch() as folder:
        path = folder / _name(place)
        fetch(place, path)
        yield path


@contextmanager
def writing_folder(place: Place) -> Iterator[Path]:
    """Yields a local folder; when the block succeeds, its files are put below a store's ``place``.

    Each file is put separately.
    """
    with _scratch() as folder:
        yield folder
        map_concurrently(
            lambda path: _upload(path, join(place, path.relative_to(folder).as_posix())),
            [path for path in sorted(folder.rglob("*")) if path.is_file()],
        )


def fetch(place: Place, path: Path) -> None:
    """Copies a file to a local path."""
    if not is_remote(place):
        shutil.copyfile(place, path)
        return

    def read(store: Any, key: str) -> None:
        with store.open_input_stream(key) as stream, open(path, "wb") as file:
            shutil.copyfileobj(stream, file, _CHUNK)

    request(place, read)


def copy(source: Place, target: Place) -> None:
    """Copies a file; between two places of a store, the bytes do not leave it."""
    if is_remote(source) and is_remote(target):
        request(target, lambda store, key: store.copy_file(bucket_and_key(source), key))
    elif is_remote(target):
        _upload(Path(source), target)
    else:
        fetch(source, Path(target))


def map_concurrently(work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """The results of ``work`` on each item, in order, by threads: they wait for a store."""
    items = list(items)
    if len(items) == 1:
        return [work(items[0])]
    with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
        return list(pool.map(work, items))


def remove(place: Place) -> None:
    """Removes a file if it exists."""
    with suppress(FileNotFoundError):
        if is_remote(place):
            request(place, lambda store, key: store.delete_file(key))
        else:
            os.unlink(place)


def remove_tree(folder: Place) -> None:
    """Removes a folder and everything in it, if it exists."""
    if not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return

    def remove_all(store: Any, key: str) -> None:
        for left in reversed(range(_MAX_NESTED_FOLDERS)):
            try:
                store.delete_dir(key)
            except OSError as error:
                # A store backed by a file system keeps a folder's entry until the folder is empty.
                if not left or "not empty" not in str(error):
                    raise
            else:
                return

    with suppress(FileNotFoundError):
        request(folder, remove_all)


def is_file(place: Place) -> bool:
    """Whether there is such a file."""
    return bool(_info(place).is_file) if is_remote(place) else os.path.isfile(place)


def is_folder(place: Place) -> bool:
    """Whether there is such a folder; on a store, whether an object lies below it."""
    if is_remote(place):
        return bool(_info(place).type.name == "Directory")
    return os.path.isdir(place)


def modified(place: Place) -> float:
    """Time of the last change of a file, or of its archive, in seconds since the epoch."""
    if not is_remote(place):
        try:
            return os.stat(place).st_mtime
        except NotADirectoryError:
            if not (above := archive.above(place)):
                raise
            return os.stat(above).st_mtime
    info = _info(archive.above(place) or place)
    if not info.is_file:
        raise FileNotFoundError(str(place))
    return float(info.mtime_ns / 1e9)


def sha256(data: bytes) -> str:
    """SHA-256 of bytes, as a hex digest."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(place: Place) -> str:
    """SHA-256 of a file, as a hex digest."""
    if not is_remote(place):
        with open(place, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def read(store: Any, key: str) -> str:
        digest = hashlib.sha256()
        with store.open_input_stream(key) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    return request(place, read)


def filesystem(place: Place) -> tuple[Any, str]:
    """The pyarrow file system of a store, and the place's key in it."""
    return request(place, lambda store, key: (store, key))


def require_folder(place: Place, label: str) -> None:
    """Raises UserError, begun by ``label``, unless there is such a folder or archive."""
    found = _can_list(place) if is_remote(place) else os.path.isdir(place)
    if found or archive.is_archive(place):
        return
    if not is_remote(place) and os.path.exists(place):
        raise UserError(
            f"{label} {str(place)!r}: expected a folder, a .zip, or a .tar that is not compressed; "
            "unpack any other archive and pass the folder"
        )
    raise UserError(f"{label} {str(place)!r}: there is no such folder or archive")


def require_writable(place: Place) -> None:
    """Lists, puts and deletes on a store, so that a job without the rights fails at its start.

    Raises:
        UserError: the store refuses.
        UnavailableError: the store does not answer.
    """
    _can_list(place)
    probe = join(place, f".probe-{uuid.uuid4().hex}")
    try:
        request(probe, lambda store, key: _put(store, key, b""), START_TIMEOUT_S)
    except FileNotFoundError as error:
        raise UserError(f"{str(place)!r}: there is no such bucket") from error
    remove(probe)


def _can_list(place: Place) -> bool:
    from pyarrow.fs import FileSelector

    try:
        request(place, lambda store, key: store.get_file_info(FileSelector(key)), START_TIMEOUT_S)
    except FileNotFoundError:
        return False
    return True


def _put(store: Any, key: str, data: Any) -> None:
    with store.open_output_stream(key) as stream:
        stream.write(data)


def _upload(path: Path, place: Place) -> None:
    import pyarrow as pa

    def put(store: Any, key: str) -> None:
        if not path.stat().st_size:
            # An empty file cannot be memory-mapped.
            _put(store, key, b"")
            return
        with pa.memory_map(str(path)) as mapped:
            _put(store, key, mapped.read_buffer())

    request(place, put)


def _info(place: Place) -> Any:
    return request(place, lambda store, key: store.get_file_info(key))


def _name(place: Place) -> str:
    return str(place).rpartition("/")[2]


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="lyft-") as folder:
        yield Path(folder)
