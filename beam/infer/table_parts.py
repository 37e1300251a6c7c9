"""Parts of the tables ``masks`` and ``class_stats``: references to rows, and the Parquet writer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from runtime.errors import UnavailableError
from runtime.object_store import request
from runtime.parquet import read_table
from runtime.storage import is_remote, map_concurrently
from schemas.layout import part_index
from schemas.prediction import CLASS_STATS, MASKS, plain

Row = dict[str, Any]
Columns = dict[str, list[Any]]

_ROW_BYTES = {"masks": 160, "class_stats": 24}
"""Approximate bytes of a row in a published file, by table; the mask's bytes are added."""

_SCHEMAS = {"masks": MASKS, "class_stats": CLASS_STATS}


class Slice(NamedTuple):
    """Rows in a file of this run: a record batch of an Arrow file."""

    file: str
    batch: int


ReusedRows = tuple[str, int]
"""Image id and bytes of the mask of an image whose published rows are taken over."""


def row_bytes(table: str, mask_size: int, classes: int) -> int:
    """Approximate bytes that an image's rows take in a file of ``table``.

    Args:
        mask_size: bytes of its mask; classes: number of its rows in class_stats.
    """
    if table == "masks":
        # The zeros of a confusion matrix take no space in a file, but four bytes in memory.
        return mask_size + _ROW_BYTES[table] + 4 * classes**2
    return classes * _ROW_BYTES[table]


def new_row_file(path: Path, schema: pa.Schema) -> Any:
    """A writer of an Arrow file; compressed, as class_stats repeats ids and names."""
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    return pa.ipc.new_file(str(path), schema, options=options)


def write_in_parts(path: Path, rows: pa.Table, parts: int) -> list[int]:
    """Writes rows to an Arrow file, one record batch for each part that has any; returns these."""
    ids = rows["image_id"].combine_chunks().dictionary_encode()
    part_of_id = np.array([part_index(one, parts) for one in ids.dictionary.to_pylist()])
    part_of_row = part_of_id[ids.indices.to_numpy()]
    order = np.argsort(part_of_row, kind="stable")
    found, starts = np.unique(part_of_row[order], return_index=True)
    ordered = rows.take(pa.array(order)).combine_chunks()
    with new_row_file(path, rows.schema) as writer:
        for start, end in pairwise([*starts.tolist(), rows.num_rows]):
            writer.write_table(ordered.slice(start, end - start))
    return [int(part) for part in found]


def read_row_files(slices: Iterable[Slice]) -> pa.Table:
    """The rows of at least one slice, in any order."""
    slices = list(slices)
    # On a store, each file costs several requests.
    read = map_concurrently if any(is_remote(one.file) for one in slices) else map
    return pa.Table.from_batches(list(read(_read_slice, slices)))


def gather(
    table: str, references: Iterable[Slice | ReusedRows], published: Sequence[str]
) -> pa.Table:
    """The rows that references name, in any order.

    Args:
        published: files of the published run, in the order of their parts.
    """
    slices, reused = list[Slice](), defaultdict[str, list[str]](list)
    for reference in references:
        if isinstance(reference, Slice):
            slices.append(reference)
        else:
            image_id, _ = reference
            reused[published[part_index(image_id, len(published))]].append(image_id)
    schema = plain(_SCHEMAS[table])
    read = map_concurrently if any(map(is_remote, reused)) else map
    pieces = [
        read_row_files(sorted(slices)) if slices else schema.empty_table(),
        *read(lambda file: _published_rows(file, reused[file], schema), sorted(reused)),
    ]
    return pa.concat_tables(pieces)


def write_part(
    path: Path, table: str, rows: pa.Table, schema: pa.Schema, row_group_bytes: int
) -> None:
    """Orders rows by image id and writes them as one Parquet file with its schema's run id."""
    run_id = schema.metadata[b"lyft.run_id"].decode()
    position = rows.schema.get_field_index("run_id")
    rows = rows.set_column(
        position, rows.schema.field("run_id"), pa.array([run_id] * rows.num_rows, pa.string())
    )
    order = [("image_id", "ascending")]
    if table == "class_stats":
        order.append(("class_id", "ascending"))
    rows = _as_published(rows.sort_by(order), schema)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start, count in _row_groups(rows, row_group_bytes):
            writer.write_table(rows.slice(start, count), row_group_size=count)


def read_published(file: str, columns: list[str]) -> pa.Table:
    """Columns of a file of the published run.

    Raises:
        UnavailableError: it is gone.
    """
    try:
        return read_table(file, columns=columns)
    except FileNotFoundError as error:
        raise UnavailableError(
            f"{file} is gone: another job has published this partition meanwhile; run again"
        ) from error


def _published_rows(file: str, image_ids: list[str], schema: pa.Schema) -> pa.Table:
    rows = read_published(file, schema.names).cast(schema)
    return rows.filter(pc.is_in(rows["image_id"], pa.array(image_ids, pa.string())))


def _read_slice(one: Slice) -> pa.RecordBatch:
    """A record batch of an Arrow file; from a store, nothing else of it is read."""

    def read(store: Any, key: str) -> pa.RecordBatch:
        with store.open_input_file(key) if store else pa.memory_map(key) as source:
            return pa.ipc.open_file(source).get_batch(one.batch)

    return request(one.file, read) if is_remote(one.file) else read(None, one.file)


def _as_published(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Encodes the schema's dictionary columns, with values in order of first occurrence."""
    rows = rows.combine_chunks()
    columns: list[Any] = [
        pc.dictionary_encode(rows[field.name])
        if pa.types.is_dictionary(field.type)
        else rows[field.name]
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _row_groups(rows: pa.Table, limit: int) -> Iterator[tuple[int, int]]:
    """Start and length of slices of at most ``limit`` bytes, or of a single larger row."""
    if "mask" not in rows.column_names:
        row_bytes = max(1, rows.nbytes // max(1, rows.num_rows))
        step = max(1, limit // row_bytes)
        yield from ((at, min(step, rows.num_rows - at)) for at in range(0, rows.num_rows, step))
        return
    start = size = 0
    fixed = _ROW_BYTES["masks"]
    # A compressed matrix takes next to no space, but a reader holds four bytes per cell.
    cells = pc.fill_null(pc.list_value_length(rows["confusion"]), 0)
    for at, length in enumerate(pc.add(rows["mask_size"], pc.multiply(cells, 4)).to_pylist()):
        if at > start and size + length + fixed > limit:
            yield start, at - start
            start, size = at, 0
        size += length + fixed
    if rows.num_rows > start:
        yield start, rows.num_rows - start
