"""Parts of the tables ``masks`` and ``class_stats``: references to rows, and the Parquet writer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from runtime.errors import UnavailableError
from runtime.object_store import request
from runtime.parquet import read_table
from runtime.storage import is_remote, map_concurrently
from schemas.prediction import CLASS_STATS, MASKS, plain

Row = dict[str, Any]
Columns = dict[str, list[Any]]

_ROW_BYTES = {"masks": 160, "class_stats": 24}
"""Approximate bytes of a row in a published file, by table; the mask's bytes are added."""

_SCHEMAS = {"masks": MASKS, "class_stats": CLASS_STATS}


class RowRef(NamedTuple):
    """A reference to the rows of one image.

    Attributes:
        files: by table: an Arrow IPC file of this run, or a published Parquet file.
        rows: number of rows in class_stats, one per class; size: bytes of the mask.
        batch: index of the record batch in an Arrow file.
    """

    image_id: str
    files: dict[str, str]
    rows: int
    size: int
    batch: int = 0

    def bytes_in(self, table: str) -> int:
        """Approximate bytes that the rows take in a file of ``table``."""
        if table == "masks":
            # The zeros of a confusion matrix take no space in a file, but four bytes in memory.
            return self.size + _ROW_BYTES[table] + 4 * self.rows**2
        return self.rows * _ROW_BYTES[table]


def write_part(
    path: Path, table: str, refs: Iterable[RowRef], schema: pa.Schema, row_group_bytes: int
) -> None:
    """Gathers the rows of images, orders them by image id and writes them as one Parquet file."""
    wanted: dict[str, list[RowRef]] = defaultdict(list)
    for ref in refs:
        wanted[ref.files[table]].append(ref)
    row_schema, files = plain(_SCHEMAS[table]), sorted(wanted)
    # On a store, each file costs several requests.
    read = map_concurrently if any(map(is_remote, files)) else map
    pieces = list(read(lambda file: _rows(file, wanted[file], row_schema), files))
    rows = pa.concat_tables(pieces) if pieces else row_schema.empty_table()
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


def _rows(file: str, refs: list[RowRef], schema: pa.Schema) -> pa.Table:
    image_ids = [ref.image_id for ref in refs]
    if file.endswith(".arrow"):
        rows = _read_batches(file, {ref.batch for ref in refs})
    else:
        try:
            rows = read_table(file, columns=schema.names).cast(schema)
        except FileNotFoundError as error:
            raise UnavailableError(
                f"{file} is gone: another job has published this partition meanwhile; run again"
            ) from error
    return rows.filter(pc.is_in(rows["image_id"], pa.array(image_ids, pa.string())))


def _read_batches(file: str, indices: set[int]) -> pa.Table:
    """Record batches of an Arrow file; from a store, nothing else of it is read."""

    def read(store: Any, key: str) -> pa.Table:
        with store.open_input_file(key) if store else pa.memory_map(key) as source:
            reader = pa.ipc.open_file(source)
            return pa.Table.from_batches([reader.get_batch(index) for index in sorted(indices)])

    return request(file, read) if is_remote(file) else read(None, file)


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
