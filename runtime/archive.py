"""Reads zip and tar archives in place: an archive is a folder, its files lie at ``a.zip/name``.

An archive may lie on a store. Only the part of it that holds a file is read.
"""

from __future__ import annotations

import errno
import io
import os
import posixpath
import re
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, TypeVar

from runtime.errors import UserError
from runtime.object_store import Place, is_outage, request

Result = TypeVar("Result")

_ARCHIVE_END = re.compile(r"\.(?:zip|tar)/", re.IGNORECASE)
_ENCRYPTED_FLAG, _UTF8_FLAG = 1, 1 << 11
_BUFFER = 4 << 20
"""Bytes read at once while the members of an archive on a store are looked up."""

_LOCAL_HEADER = struct.Struct("<26xHH")
"""Header of a zip's member: its signature, sizes and so on, and the lengths of name and extra field
(PKWARE, APPNOTE.TXT, 4.3.7)."""

_EXTRA_ROOM = 256
"""Bytes that the extra field may be longer there than in the zip's directory, or a second read is
needed."""

_END_BYTES = 1 << 20
"""Bytes after the last member of a tar that are checked: tools fill up to blocks of 10 KiB."""

_KEPT = 64
"""Archives whose indexes a process keeps: about 1 KiB for each file."""

_on_store: set[str] = set()
"""URIs known to be archives."""

_locks: dict[str, threading.Lock] = {}


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


def is_named_archive(name: str) -> bool:
    """Whether a name ends in .zip or .tar."""
    return name.lower().endswith((".zip", ".tar"))


def is_archive(place: Place) -> bool:
    """Whether a path or URI is that of a file whose name ends in .zip or .tar."""
    name = str(place)
    if not is_named_archive(name):
        return False
    if not _is_remote(name):
        return os.path.isfile(name)
    if name not in _on_store:
        info = request(name, lambda store, key: store.get_file_info(key))
        if not info.is_file:
            return False
        _on_store.add(name)
    return True


def above(place: Place) -> str:
    """Path or URI of the archive that a place lies in; empty if there is none."""
    name = str(place)
    ends = (end.end() - 1 for end in _ARCHIVE_END.finditer(name))
    return next((name[:end] for end in ends if is_archive(name[:end])), "")


def members(archive: str) -> Iterator[Member]:
    """Yields all files of an archive, hidden ones too.

    Raises:
        UserError: it is gone, damaged, or compressed as a whole.
    """
    try:
        return iter(_with_file(archive, partial(_index_of, archive)).members)
    except OSError as error:
        raise UserError(f"archive {archive!r} cannot be read: {error.strerror or error}") from error


def read(place: str) -> bytes:
    """The bytes of a file in an archive.

    Raises:
        OSError: there is no such file, or it is damaged.
    """
    if not (archive := above(place)):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), place)
    name = place[len(archive) + 1 :]

    def read_member(file: Any) -> bytes:
        index = _index_of(archive, file)
        if name not in index.readers:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)
        return index.readers[name](file)

    try:
        return _with_file(archive, read_member)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise OSError(errno.EIO, f"damaged in its archive: {error}", place) from error


def _is_remote(place: str) -> bool:
    return "://" in place


def _with_file(archive: str, work: Callable[[Any], Result]) -> Result:
    """Calls ``work`` with the archive, opened to be read at any position."""
    if not _is_remote(archive):
        with open(archive, "rb") as local:
            return work(local)

    def on_store(store: Any, key: str) -> Result:
        with store.open_input_file(key) as remote:
            return work(remote)

    return request(archive, on_store)


@dataclass(frozen=True)
class _Index:
    """Members of an archive, and for those that can be read, a function of the opened archive."""

    members: list[Member] = field(default_factory=list)
    readers: dict[str, Callable[[Any], bytes]] = field(default_factory=dict)
    _numbers: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, size: int, read: Callable[[Any], bytes], error: str = "") -> None:
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


def _index_of(archive: str, file: Any) -> _Index:
    """The index of an archive, made anew if the archive has changed."""
    if _is_remote(archive):
        state = f"{file.size()} {file.metadata()}"
    else:
        status = os.fstat(file.fileno())
        state = f"{status.st_size} {status.st_mtime_ns}"
    # Threads that read the first files at the same time must not each make an index.
    with _locks.setdefault(archive, threading.Lock()):
        return _make_index(archive, state)


@lru_cache(maxsize=_KEPT)
def _make_index(archive: str, state: str) -> _Index:
    del state  # It is only a part of the cache's key.
    list_it = _list_zip if archive.lower().endswith(".zip") else _list_tar

    def read_index(file: Any) -> _Index:
        if not _is_remote(archive):
            return list_it(file)
        buffered = io.BufferedReader(file, _BUFFER)
        try:
            return list_it(buffered)
        except zipfile.BadZipFile as error:
            # zipfile takes any error for the end of the file.
            if error.__context__ and is_outage(error.__context__):
                raise error.__context__ from None
            raise

    try:
        return _with_file(archive, read_index)
    except UserError:
        raise
    except Exception as error:
        # Damaged headers make both modules raise many types; the message is quoted.
        raise UserError(
            f"archive {archive!r} cannot be read: {error}; expected a .zip, or a .tar that is not "
            "compressed; unpack any other and pass the folder"
        ) from error


def _list_zip(file: Any) -> _Index:
    index = _Index()
    for info in zipfile.ZipFile(file).infolist():
        if info.is_dir():
            continue
        error = ""
        if info.flag_bits & _ENCRYPTED_FLAG:
            error = "it is encrypted"
        elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            error = f"it is compressed by method {info.compress_type}; expected deflate"
        elif info.compress_size > 2 * info.file_size + _EXTRA_ROOM:
            # Jobs check the size of a file before they read it, but not of what is read for it.
            error = f"its {info.file_size:,} bytes take {info.compress_size:,} in the archive"
        # Some tools on Windows write its separator.
        name = _name_of(info).replace("\\", "/")
        index.add(name, info.file_size, partial(_read_zipped, info), error)
    return index


def _name_of(info: zipfile.ZipInfo) -> str:
    """The name of a member. Names without the flag of UTF-8 are in it as well on macOS."""
    if not info.flag_bits & _UTF8_FLAG:
        with suppress(UnicodeError):
            return info.filename.encode("cp437").decode()
    return info.filename


def _list_tar(file: Any) -> _Index:
    index = _Index()
    with tarfile.open(fileobj=file, mode="r:") as opened:
        for info in opened:
            if info.isreg() and not info.issparse():
                index.add(info.name, info.size, partial(_read_part, info.offset_data, info.size))
            elif info.islnk():
                index.add_link(info.name, info.linkname)
            elif not info.isdir():
                path = posixpath.normpath(info.name)
                index.members.append(Member(path, info.size, skipped="no regular file"))
        _check_end(file, opened.offset)
    return index


def _check_end(file: Any, end: int) -> None:
    """Checks that a tar ends where its listing does: tarfile takes a damaged header for the end."""
    size = file.seek(0, os.SEEK_END)
    rest = _read_part(end, min(_END_BYTES, max(0, size - end)), file)
    if not rest:
        raise tarfile.ReadError("its end is missing, as if it were cut off")
    if rest.strip(b"\0"):
        raise tarfile.ReadError(f"it is damaged at byte {end:,}, or more tars are appended to it")


def _read_zipped(info: zipfile.ZipInfo, file: Any) -> bytes:
    """A member of a zip, in one read of the archive: ``zipfile`` takes several."""
    name_length = len(info.orig_filename.encode())
    room = _LOCAL_HEADER.size + name_length + len(info.extra) + _EXTRA_ROOM
    file.seek(info.header_offset)
    data = file.read(room + info.compress_size)
    if len(data) < _LOCAL_HEADER.size or not data.startswith(b"PK\x03\x04"):
        raise zipfile.BadZipFile("its header is missing")
    begin = _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack_from(data))
    if begin > room:
        data = _read_part(info.header_offset, begin + info.compress_size, file)
    content: bytes = data[begin : begin + info.compress_size]
    if info.compress_type == zipfile.ZIP_DEFLATED:
        # No further than the size that was listed and checked.
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, info.file_size + 1)
    if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
        raise zipfile.BadZipFile("Bad CRC-32")
    return content


def _read_part(start: int, size: int, file: Any) -> bytes:
    file.seek(start)
    data = bytes(file.read(size))
    if len(data) < size:
        raise EOFError(f"expected {size} bytes, found {len(data)}")
    return data
