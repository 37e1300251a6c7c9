"""Lists files and folders, on this machine or on a store."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from runtime.archive import is_archive, is_named_archive, members, skip_reason
from runtime.errors import UserError
from runtime.object_store import Place, bucket_and_key, request
from runtime.storage import CONCURRENT_REQUESTS, is_remote, join, modified


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file below a root: relative path, size in bytes, last change in seconds since the epoch.

    Attributes:
        skipped: why jobs ignore it, e.g. it is hidden, or a folder that was listed already.
        error: why it cannot be read, e.g. a broken link.
    """

    path: str
    size: int
    modified: float
    skipped: str = ""
    error: str = ""


def files(folder: Place) -> list[SourceFile]:
    """The files in a folder, sorted by name, without hidden ones; none if it does not exist."""
    entries = (entry for entry in _entries(folder) if isinstance(entry, SourceFile))
    return sorted(filter(_is_usable, entries), key=lambda file: file.path)


def folders(folder: Place) -> list[str]:
    """Sorted names of the folders in a folder, hidden ones too; none if it does not exist."""
    return sorted(one for one in _entries(folder) if isinstance(one, str))


def _entries(folder: Place) -> Iterator[SourceFile | str]:
    try:
        yield from _children(str(folder))
    except FileNotFoundError:
        return


def _is_usable(file: SourceFile) -> bool:
    return not (file.skipped or file.error or file.path.startswith("."))


def walk(root: Place) -> Iterator[SourceFile]:
    """Yields all files below a folder that can be read, without hidden ones.

    Raises:
        UserError: a folder cannot be listed.
    """
    return (one for one in walk_all(root) if not one.skipped and not one.error)


def walk_all(root: Place) -> Iterator[SourceFile]:
    """Yields all files below a folder, and the folders that are not entered, marked as skipped.

    Hidden files are skipped, too. Links to folders are followed last, and only to folders not seen
    yet, so that a file's path does not depend on the order in which the file system lists entries.
    An archive is listed like a folder.

    Raises:
        UserError: a folder or archive cannot be listed.
    """
    if is_archive(root):
        return _walk_archive(str(root))
    if str(root).startswith("gs://"):
        # On Google's store, pyarrow omits folders without an object of their own.
        return _walk_objects(str(root))
    if is_remote(root):
        return _walk_store(str(root))
    return _walk_folder(str(root))


def open_archives(root: Place, files: Iterable[SourceFile]) -> Iterator[SourceFile]:
    """Passes the files below ``root`` on, but in place of each archive the files in it.

    Archives in archives are files like others.

    Raises:
        UserError: an archive cannot be read; its files would be missing without a word.
    """

    def inside(archive: SourceFile) -> list[SourceFile]:
        found = _walk_archive(join(root, archive.path))
        return [replace(file, path=f"{archive.path}/{file.path}") for file in found]

    if is_archive(root):
        yield from files
        return
    opening = deque[Future[list[SourceFile]]]()
    with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
        for file in files:
            if file.skipped or file.error or not is_named_archive(file.path):
                yield file
                continue
            opening.append(pool.submit(inside, file))
            if len(opening) == CONCURRENT_REQUESTS:
                yield from opening.popleft().result()
        while opening:
            yield from opening.popleft().result()


def _walk_archive(archive: str) -> Iterator[SourceFile]:
    found = members(archive)
    changed = modified(archive)
    for member in found:
        yield SourceFile(member.path, member.size, changed, member.skipped, member.error)


def _walk_objects(root: str) -> Iterator[SourceFile]:
    """Lists all objects below a place in a store at once, without regard to folders."""
    from pyarrow.fs import FileSelector

    prefix_length = len(bucket_and_key(root)) + 1
    try:
        found = request(
            root, lambda store, key: store.get_file_info(FileSelector(key, recursive=True))
        )
    except OSError as error:
        raise UserError(f"folder {root!r} cannot be listed: {error.strerror or error}") from error
    for info in found:
        if info.is_file:
            path = info.path[prefix_length:]
            yield SourceFile(path, info.size, info.mtime_ns / 1e9, skip_reason(path))


def _walk_store(root: str) -> Iterator[SourceFile]:
    """Lists the folders of a store, several at a time: each takes a request per 1,000 names."""

    def children(folder: str) -> list[SourceFile | str]:
        return list(_children(join(root, folder) if folder else root))

    pending, requested = [""], deque[tuple[str, Future[list[SourceFile | str]]]]()
    with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
        while pending or requested:
            while pending and len(requested) < CONCURRENT_REQUESTS:
                folder = pending.pop()
                requested.append((folder, pool.submit(children, folder)))
            folder, found = requested.popleft()
            try:
                for child in _with_paths(folder, found.result()):
                    if isinstance(child, str):
                        pending.append(child)
                    else:
                        yield child
            except OSError as error:
                raise _cannot_list(root, folder, error) from error


def _walk_folder(root: str) -> Iterator[SourceFile]:
    pending, links = [""], list[str]()
    seen: set[tuple[int, int]] = set()
    while pending or links:
        if not pending:
            links.sort(reverse=True)
        folder = (pending or links).pop()
        place = join(root, folder) if folder else root
        try:
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen:
                yield SourceFile(folder, 0, 0, skipped="folder listed under another name")
                continue
            seen.add((status.st_dev, status.st_ino))
            for child in _with_paths(folder, _children(place)):
                if isinstance(child, str):
                    (links if os.path.islink(join(root, child)) else pending).append(child)
                else:
                    yield child
        except OSError as error:
            raise _cannot_list(root, folder, error) from error


def _with_paths(folder: str, children: Iterable[SourceFile | str]) -> Iterator[SourceFile | str]:
    """The files and subfolders of a folder by their paths; hidden ones are files to skip."""
    prefix = f"{folder}/" if folder else ""
    for child in children:
        name = child if isinstance(child, str) else child.path
        if name.startswith("."):
            yield SourceFile(prefix + name, 0, 0, skipped="hidden")
        elif isinstance(child, str):
            yield prefix + child
        else:
            yield replace(child, path=prefix + name)


def _cannot_list(root: str, folder: str, error: OSError) -> UserError:
    place = join(root, folder) if folder else root
    return UserError(f"folder {place!r} cannot be listed: {error.strerror or error}")


def _children(folder: str) -> Iterator[SourceFile | str]:
    """Yields the files of one folder and the names of its subfolders."""
    if is_remote(folder):
        yield from _remote_children(folder)
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                status = entry.stat()
            except OSError as error:
                # A broken link, or one that leads to itself.
                yield SourceFile(entry.name, 0, 0, error=f"cannot be read: {error.strerror}")
                continue
            if stat.S_ISDIR(status.st_mode):
                yield entry.name
            elif stat.S_ISREG(status.st_mode):
                yield SourceFile(entry.name, status.st_size, status.st_mtime)
            else:
                yield SourceFile(entry.name, 0, 0, skipped="no regular file")


def _remote_children(folder: str) -> Iterator[SourceFile | str]:
    from pyarrow.fs import FileSelector

    # On Google's store, pyarrow omits folders without an object of their own: list all below.
    recursive = folder.startswith("gs://")
    prefix_length = len(bucket_and_key(folder)) + 1
    seen: set[str] = set()
    for info in request(
        folder, lambda store, key: store.get_file_info(FileSelector(key, recursive=recursive))
    ):
        name, _, below = info.path[prefix_length:].partition("/")
        if info.is_file and not below:
            yield SourceFile(name, info.size, info.mtime_ns / 1e9)
        elif name not in seen:
            seen.add(name)
            yield name
