"""WriteTable: rows to Parquet files of one partition, named and ordered by nothing but the rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.layout import part_name

Row = dict[str, Any]


@dataclass
class WriteTable(beam.PTransform):
    """Groups of rows, keyed by image id, to ``parts`` Parquet files.

    An image's rows stay together; files and rows are ordered by a hash of the image id and by the
    id, so a bundle that is tried again, or another number of workers, writes the same bytes.

    Attributes:
        folder: an existing folder.
        schema: of the files, footer metadata included.
        parts: number of files; each is written, be it empty.
        row_group_bytes: most uncompressed bytes in a row group, but for a single larger row.
    """

    folder: str
    schema: pa.Schema
    parts: int
    row_group_bytes: int

    def expand(self, rows: beam.PCollection[tuple[str, list[Row]]]) -> beam.PCollection[str]:
        """The graph: key by part, group, write; returns the paths of the files."""
        keyed = rows | "KeyByPart" >> beam.Map(lambda one: (part_of(one[0], self.parts), one))
        every = (
            rows.pipeline
            | "Parts" >> beam.Create(range(self.parts))
            | "EveryPart" >> beam.Map(lambda part: (part, None))
        )
        return (
            (keyed, every)
            | "AllParts" >> beam.Flatten()
            | "GroupByPart" >> beam.GroupByKey()
            | "WritePart"
            >> beam.Map(
                lambda group, **options: write_part(*group, **options),
                folder=self.folder,
                schema=self.schema,
                parts=self.parts,
                row_group_bytes=self.row_group_bytes,
            )
        )


def part_of(image_id: str, parts: int) -> int:
    """Index of the file that holds an image's rows."""
    digest = hashlib.blake2b(image_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest) * parts >> 64


def write_part(
    part: int,
    groups: Iterable[tuple[str, list[Row]] | None],
    *,
    folder: str,
    schema: pa.Schema,
    parts: int,
    row_group_bytes: int,
) -> str:
    """Writes one file, image by image in the order of their ids; returns its path."""
    ordered = sorted((group for group in groups if group is not None), key=lambda group: group[0])
    rows = (row for _, image_rows in ordered for row in image_rows)
    run_id = schema.metadata[b"lyft.run_id"].decode()
    path = Path(folder, part_name(run_id, part, parts))
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in _row_groups(rows, schema, row_group_bytes):
            writer.write_table(table, row_group_size=max(1, table.num_rows))
    return str(path)


def _row_groups(rows: Iterable[Row], schema: pa.Schema, limit: int) -> Iterator[pa.Table]:
    pending: list[Row] = []
    size = 0
    for row in rows:
        weight = _weight(row)
        if pending and size + weight > limit:
            yield pa.Table.from_pylist(pending, schema=schema)
            pending, size = [], 0
        pending.append(row)
        size += weight
    if pending:
        yield pa.Table.from_pylist(pending, schema=schema)


def _weight(row: Row) -> int:
    """Bytes of a row, about: 8 for a number, also in a list; the length of a text or a picture."""
    weight = 0
    for value in row.values():
        if isinstance(value, dict):
            weight += _weight(value)
        elif isinstance(value, list):
            weight += 8 * len(value)
        else:
            weight += len(value) if isinstance(value, str | bytes) else 8
    return weight
