"""One row for each pair that an ingest saw: ``sources.parquet`` of a dataset."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa

_TYPES = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A pair from its listing to its place in a shard, or to the reason why it has none.

    Attributes:
        image_path, mask_path: below the source root.
        image_size, mask_size: bytes; image_modified, mask_modified: seconds since the epoch.
        split, shard: where the record is; shard is null for a reject.
        source_height, source_width: pixels, before resizing.
        dhash: 64-bit difference hash of the image, 16 hex digits.
        reject_code, reject_message: null for a record.
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
    shard: str | None = None
    source_height: int | None = None
    source_width: int | None = None
    dhash: str | None = None
    reject_code: str | None = None
    reject_message: str | None = None


SOURCES = pa.schema(
    [
        pa.field(field.name, _TYPES[kind], nullable=nullable)
        for field in fields(SourceRow)
        for kind, _, nullable in [str(field.type).partition(" | ")]
    ]
)


def source_table(rows: list[SourceRow]) -> pa.Table:
    """Rows in the order of their ids."""
    ordered = sorted(rows, key=lambda row: row.id)
    return pa.Table.from_pylist([asdict(row) for row in ordered], schema=SOURCES)


def rows_of(table: pa.Table) -> list[SourceRow]:
    """The rows that ``source_table`` was given."""
    found: list[dict[str, Any]] = table.to_pylist()
    return [SourceRow(**row) for row in found]
