"""Files in which records wait for their shard; only references to them cross the shuffle.

The pixel statistics follow each record, so that it is not decoded again to compute them.
"""

from __future__ import annotations

import io
import json
import os
import uuid
from typing import NamedTuple

from runtime.storage import is_remote, join, read_range, writing
from schemas.example import read_records, write_record
from schemas.stats import PixelStats

_FILE_BYTES = 16 << 20


class RecordRef(NamedTuple):
    """A reference to a record.

    Attributes:
        file: path or URI; a file of this job, or a shard of an earlier version.
        offset, length: in bytes, of its TFRecord frame in the file.
        stats: length of the frame of its statistics, which follows; 0 in a published shard.
    """

    file: str
    offset: int
    length: int
    stats: int = 0


class RecordFiles:
    """Writes records to files of about 16 MiB; references are valid once ``close`` was called.

    A retried bundle writes new files; those of the first attempt are never read.

    Args:
        folder: path or URI that every worker can read.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._file = ""
        self._buffer = io.BytesIO()

    def add(self, record: bytes, stats: PixelStats) -> RecordRef:
        """Appends a serialised Example and its statistics."""
        if not self._file:
            self._file = join(self._folder, f"{uuid.uuid4().hex}.records")
        offset = self._buffer.tell()
        length = write_record(self._buffer, record)
        stats_length = write_record(self._buffer, json.dumps(stats.to_json()).encode())
        ref = RecordRef(self._file, offset, length, stats_length)
        if self._buffer.tell() > _FILE_BYTES:
            self.close()
        return ref

    def close(self) -> None:
        """Writes what has been added since the last file."""
        if not self._file:
            return
        with writing(self._file) as path:
            path.write_bytes(self._buffer.getbuffer())
        self._file = ""
        self._buffer = io.BytesIO()


def read_frames(ref: RecordRef) -> bytes:
    """The bytes of a record's frame and of its statistics' frame."""
    size = ref.length + ref.stats
    if is_remote(ref.file):
        return read_range(ref.file, ref.offset, size)
    file = os.open(ref.file, os.O_RDONLY)
    try:
        return os.pread(file, size, ref.offset)
    finally:
        os.close(file)


def unframe(ref: RecordRef, frames: bytes) -> tuple[bytes, PixelStats | None]:
    """The serialised Example in ``frames``, and its statistics or None.

    Raises:
        CorruptRecordError: a checksum does not match.
    """
    record, *stats = read_records(io.BytesIO(frames), f"{ref.file} from byte {ref.offset:,}")
    return record, PixelStats.from_json(json.loads(stats[0])) if stats else None
