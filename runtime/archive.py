"""Reads zip and tar archives in place: an archive is a folder, its files lie at ``a.zip/name``."""

from __future__ import annotations

import errno
import os
import posixpath
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

from runtime.errors import UserError

_ARCHIVE_END = re.compile(r"\.(?:zip|tar)/", re.IGNORECASE)
_ENCRYPTED_FLAG = 1
_UTF8_FLAG = 1 << 11

_END_BYTES = 1 << 20
"""Bytes after the last member of a tar that are checked: tools fill up to blocks of 10 KiB."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive: its path with ``/``, and its size in bytes.

    Attributes:
        skipped: why jobs ignore it; error: why it cannot be read; both may be empty.
    """

    path: str
    size: int
    skipped: str = ""
    error: str = ""


def skip_reason(path: str) -> str:
    """``hidden`` if the name of the file or of a folder above it begins with a dot, else empty."""
    return "hidden" if any(part.startswith(".") for part in path.split("/")) else ""


def is_archive(place: str | os.PathLike[str]) -> bool:
    """Whether a local path is a file whose name ends in .zip or .tar."""
    return str(place).lower().endswith((".zip", ".tar")) and os.path.isfile(place)


def members(archive: str) -> Iterator[Member]:
    """Yields all files of an archive, hidden ones too.

    Raises:
        UserError: it is damaged, or compressed as a whole.
    """
    return iter(_open(archive).members)


def read(place: str) -> bytes:
    """The bytes of a file in an archive.

    Raises:
        OSError: there is no such file, or it is damaged.
    """
    archive, name = _split(place)
    try:
        read_member = _open(archive).readers[name]
    except KeyError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place) from None
    try:
        return read_member()
    except OSError:
        raise
    except Exception as error:
        # Each compression raises types of its own; the message is quoted.
        raise OSError(errno.EIO, f"damaged in its archive: {error}", place) from error


def modified(place: str) -> float:
    """Time of the archive's last change, seconds since the epoch; members keep no reliable one."""
    return os.stat(_split(place)[0]).st_mtime


@dataclass(frozen=True)
class _Archive:
    members: list[Member] = field(default_factory=list)
    readers: dict[str, Callable[[], bytes]] = field(default_factory=dict)
    _numbers: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, size: int, read: Callable[[], bytes], error: str = "") -> None:
        path = posixpath.normpath(name)
        if path.startswith(("/", "../")):
            self.members.append(Member(path, size, error="its name leads out of the archive"))
            return
        if (earlier := self._numbers.get(path)) is not None:
            # As when it is unpacked, the last one counts: tar appends a new version of a file.
            self.members[earlier] = replace(self.members[earlier], skipped="replaced later")
        self._numbers[path] = len(self.members)
        self.members.append(Member(path, size, skip_reason(path), error))
        self.readers[path] = read

    def add_link(self, name: str, target: str) -> None:
        """Adds another name of a file: tar stores the content of hard links once."""
        number = self._numbers.get(posixpath.normpath(target))
        if number is None:
            error = f"it is a link to {target!r}, which is not in the archive"
            self.members.append(Member(posixpath.normpath(name), 0, error=error))
            return
        file = self.members[number]
        self.add(name, file.size, self.readers[file.path])


def _split(place: str) -> tuple[str, str]:
    """Path of the archive that a place lies in, and the name of the file within it."""
    for end in _ARCHIVE_END.finditer(place):
        if os.path.isfile(archive := place[: end.end() - 1]):
            return archive, place[end.end() :]
    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), place)


def _open(archive: str) -> _Archive:
    status = os.stat(archive)
    # A forked process would share the position in the file, so each one opens its own.
    return _open_cached(archive, status.st_mtime_ns, status.st_size, os.getpid())


@lru_cache(maxsize=2)
def _open_cached(archive: str, modified: int, size: int, process: int) -> _Archive:
    del modified, size, process  # They are only a part of the cache's key.
    try:
        return _open_zip(archive) if archive.lower().endswith(".zip") else _open_tar(archive)
    except Exception as error:
        # Damaged headers make both modules raise many types; the message is quoted.
        raise UserError(
            f"archive {archive!r} cannot be read: {error}; expected a .zip, or a .tar that is not "
            "compressed; unpack any other and pass the folder"
        ) from error


def _open_zip(archive: str) -> _Archive:
    # It stays open: listing 200,000 members takes a second.
    file = zipfile.ZipFile(archive)
    opened = _Archive()
    for info in file.infolist():
        if not info.is_dir():
            # Some tools on Windows write its separator.
            name = _name_of(info).replace("\\", "/")
            error = "it is encrypted" if info.flag_bits & _ENCRYPTED_FLAG else ""
            opened.add(name, info.file_size, partial(file.read, info), error)
    return opened


def _name_of(info: zipfile.ZipInfo) -> str:
    """The name of a member. Names without the flag of UTF-8 are in it as well on macOS."""
    if not info.flag_bits & _UTF8_FLAG:
        with suppress(UnicodeError):
            return info.filename.encode("cp437").decode()
    return info.filename


def _open_tar(archive: str) -> _Archive:
    opened = _Archive()
    with tarfile.open(archive, "r:") as file:
        for info in file:
            if info.isreg() and not info.issparse():
                read_it = partial(_read_part, archive, info.offset_data, info.size)
                opened.add(info.name, info.size, read_it)
            elif info.islnk():
                opened.add_link(info.name, info.linkname)
            elif not info.isdir():
                path = posixpath.normpath(info.name)
                opened.members.append(Member(path, info.size, skipped="no regular file"))
        _check_end(archive, file.offset)
    return opened


def _check_end(archive: str, end: int) -> None:
    """Checks that a tar ends where its listing does: tarfile takes a damaged header for the end."""
    rest = _read_part(archive, end, min(_END_BYTES, os.path.getsize(archive) - end))
    if not rest:
        raise tarfile.ReadError("its end is missing, as if it were cut off")
    if rest.strip(b"\0"):
        raise tarfile.ReadError(f"it is damaged at byte {end:,}, or more tars are appended to it")


def _read_part(archive: str, start: int, size: int) -> bytes:
    with open(archive, "rb") as file:
        file.seek(start)
        data = file.read(size)
    if len(data) < size:
        raise EOFError(f"expected {size} bytes, found {len(data)}")
    return data
