"""The lineage table of a dataset, ``sources.parquet``: a row for each pair that an ingest saw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import islice
from operator import attrgetter
from typing import Any

import pyarrow as pa

LISTING_KEY = b"lyft.listing"
"""Key in the footer of the table: digest of the source's listing."""

_TYPES = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A pair: its files, and either its position in a shard or the reason for its reject.

    Attributes:
        image_path, mask_path: relative to the source root.
        image_size, mask_size: in bytes.
        image_modified, mask_modified: in seconds since the epoch.
        split, shard: where the record is; shard is null for a reject.
        group: images that stay in one split since they belong together, e.g. a stretch of a drive.
        offset, length: bytes of the shard at which the record begins, and that it takes.
        classes: ids of the classes that the mask has, separated by commas; empty if there is none.
        source_height, source_width: pixels, before resizing.
        dhash: 64-bit difference hash of the resized image, 16 hex digits.
        picture: hash of the resized image's pixels, 32 hex digits.
        doubts: codes of what is doubtful about the pair, separated by commas; empty if nothing is.
        cells, agreeing: cells of a grid in which image and mask can be compared, and those in which
            their edges agree.
        blue_tilt: how much bluer the upper third is than the rest, in steps of 255.
        reject_path, reject_code, reject_message: null for a record.
    """

    id: str
    image_path: str
    mask_path: str
    image_size: int
    mask_size: int
    image_modified: float
    mask_modified: float
    image_sha256: str | None = None
    mask_sha256: str | None = None
    split: str | None = None
    group: str | None = None
    shard: str | None = None
    offset: int | None = None
    length: int | None = None
    classes: str | None = None
    source_height: int | None = None
    source_width: int | None = None
    dhash: str | None = None
    picture: str | None = None
    doubts: str | None = None
    cells: int | None = None
    agreeing: int | None = None
    blue_tilt: float | None = None
    reject_path: str | None = None
    reject_code: str | None = None
    reject_message: str | None = None

    def __reduce__(self) -> tuple[type[SourceRow], tuple[Any, ...]]:
        # Rows are shuffled: pickled by position, they are half as long as with field names.
        return SourceRow, _values(self)


_values = attrgetter(*(field.name for field in fields(SourceRow)))

SOURCES = pa.schema(
    [
        pa.field(field.name, _TYPES[kind], nullable=nullable)
        for field in fields(SourceRow)
        for kind, _, nullable in [str(field.type).partition(" | ")]
    ]
)

_CHUNK = 1_000


def source_table(rows: Iterable[SourceRow]) -> pa.Table:
    """A table of the rows, sorted by id; consumes ``rows`` in chunks."""
    stream = map(_values, rows)
    chunks = []
    while chunk := list(islice(stream, _CHUNK)):
        columns = zip(SOURCES, zip(*chunk, strict=True), strict=True)
        arrays = [pa.array(values, field.type) for field, values in columns]
        chunks.append(pa.RecordBatch.from_arrays(arrays, schema=SOURCES))
    return pa.Table.from_batches(chunks, SOURCES).sort_by("id")


def rows_of(table: pa.Table) -> Iterator[SourceRow]:
    """Yields the rows of a ``source_table``, sorted by id."""
    for batch in table.to_batches(_CHUNK):
        for row in batch.to_pylist():
            yield SourceRow(**row)
