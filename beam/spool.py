"""SpoolRows and WriteSpooled: rows wait in files on disk; only who lies where crosses the shuffle.

A row is written once where it is made. When all are there, each part of a table is gathered from
the files that hold its images: files of this run, or files of the published run for images that
have not changed.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from schemas.layout import part_name
from schemas.prediction import CLASS_STATS, MASKS, plain

Row = dict[str, Any]
Columns = dict[str, list[Any]]
PartKey = tuple[str, int, int]
"""Table, index of the part, number of parts."""

_FLUSH_IMAGES, _FLUSH_BYTES = 512, 16 << 20
_ROW_BYTES = {"masks": 160, "class_stats": 24}
"""Of a row of each table beside its mask, about, as it lies in a published file."""

_SCHEMAS = {"masks": MASKS, "class_stats": CLASS_STATS}


class Ref(NamedTuple):
    """Where the rows of one image lie.

    Attributes:
        files: path by table: Arrow IPC files of this run, or published Parquet files.
        rows: of class_stats; size: bytes of the mask.
    """

    image_id: str
    files: dict[str, str]
    rows: int
    size: int

    def bytes_in(self, table: str) -> int:
        """Bytes in a file of ``table``, about."""
        if table == "masks":
            return self.size + _ROW_BYTES[table]
        return self.rows * _ROW_BYTES[table]


class SpoolRows(beam.DoFn):
    """Described images to files of rows in ``folder``, some MiB each; yields a Ref for each image.

    A bundle that is tried again writes files of its own; those of the first try are never read.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def start_bundle(self) -> None:
        """Beam's: before each bundle."""
        self._masks: list[Row] = []
        self._classes: list[Columns] = []
        self._size = 0

    def process(self, element: tuple[Row, Columns]) -> Iterator[Ref]:
        """Keeps rows until there are enough for a file."""
        mask, classes = element
        self._masks.append(mask)
        self._classes.append(classes)
        self._size += len(mask["mask"]["bytes"])
        if len(self._masks) >= _FLUSH_IMAGES or self._size > _FLUSH_BYTES:
            yield from self._flush()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Beam's: writes what is left."""
        window = GlobalWindow()
        for ref in self._flush():
            yield WindowedValue(ref, window.max_timestamp(), [window])

    def _flush(self) -> Iterator[Ref]:
        if not self._masks:
            return
        masks = pa.Table.from_pylist(self._masks, schema=plain(MASKS))
        names = CLASS_STATS.names
        columns = {name: [value for one in self._classes for value in one[name]] for name in names}
        classes = pa.table(columns, schema=plain(CLASS_STATS))
        stem = os.path.join(self._folder, uuid.uuid4().hex)
        files = {}
        for name, table in (("masks", masks), ("class_stats", classes)):
            files[name] = f"{stem}.{name}.arrow"
            with pa.ipc.new_file(files[name], table.schema) as writer:
                writer.write_table(table)
        for mask, one in zip(self._masks, self._classes, strict=True):
            size = len(mask["mask"]["bytes"])
            yield Ref(mask["image_id"], files, len(one["class_id"]), size)
        self.start_bundle()


@dataclass
class WriteSpooled(beam.PTransform):
    """Refs to the Parquet files of both tables, as many as keep each below a target size.

    Files and rows are ordered by a hash of the image id and by the id: the bytes depend on neither
    workers, nor retries, nor on which run predicted an image.

    Attributes:
        folder: holds a folder of each table's name.
        schemas: of the files, by table, footer metadata included.
        part_bytes: most bytes in a file, about.
        row_group_bytes: most uncompressed bytes in a row group, but for a single larger row.
        run_id: of all rows, also of those that another run made.

    Returns table and path of each file.
    """

    folder: str
    schemas: dict[str, pa.Schema]
    part_bytes: int
    row_group_bytes: int
    run_id: str

    def expand(self, refs: beam.PCollection[Ref]) -> beam.PCollection[tuple[str, str]]:
        """The graph: sum sizes, key by table and part, group, write."""
        total = beam.pvalue.AsSingleton(
            refs
            | "Sizes" >> beam.Map(lambda ref: [ref.bytes_in(table) for table in self.schemas])
            | "TotalSizes" >> beam.CombineGlobally(_sums).without_defaults(),
            default_value=[0] * len(self.schemas),
        )
        keyed = refs | "KeyByPart" >> beam.FlatMap(self._keys, total)
        # A part without a row still is a file, or the set would not be complete.
        every = (
            refs.pipeline
            | "Tables" >> beam.Create([None])
            | "EveryPart" >> beam.FlatMap(self._every, total)
        )
        return (
            (keyed, every)
            | "AllParts" >> beam.Flatten()
            | "GroupByPart" >> beam.GroupByKey()
            | "WritePart" >> beam.MapTuple(self._write)
        )

    def _parts(self, totals: list[int]) -> dict[str, int]:
        sizes = zip(self.schemas, totals, strict=True)
        return {table: max(1, -(-size // self.part_bytes)) for table, size in sizes}

    def _keys(self, ref: Ref, totals: list[int]) -> Iterator[tuple[PartKey, Ref]]:
        for table, parts in self._parts(totals).items():
            yield (table, part_of(ref.image_id, parts), parts), ref

    def _every(self, _: None, totals: list[int]) -> Iterator[tuple[PartKey, None]]:
        for table, parts in self._parts(totals).items():
            for part in range(parts):
                yield (table, part, parts), None

    def _write(self, key: PartKey, refs: Iterable[Ref | None]) -> tuple[str, str]:
        table, part, parts = key
        path = Path(self.folder, table, part_name(self.run_id, part, parts))
        rows = filter(None, refs)
        write_part(path, table, rows, self.schemas[table], self.row_group_bytes)
        return table, str(path)


def part_of(image_id: str, parts: int) -> int:
    """Index of the file that holds an image's rows."""
    digest = hashlib.blake2b(image_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest) * parts >> 64


def _sums(sizes: Iterable[list[int]]) -> list[int]:
    return [sum(column) for column in zip(*sizes, strict=True)]


def write_part(
    path: Path, table: str, refs: Iterable[Ref], schema: pa.Schema, row_group_bytes: int
) -> None:
    """Gathers the rows of images, orders them by image id and writes them as one Parquet file."""
    wanted: dict[str, list[str]] = defaultdict(list)
    for ref in refs:
        wanted[ref.files[table]].append(ref.image_id)
    pieces = [_rows(file, wanted[file], plain(_SCHEMAS[table])) for file in sorted(wanted)]
    rows = pa.concat_tables(pieces) if pieces else plain(_SCHEMAS[table]).empty_table()
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


def _rows(file: str, image_ids: list[str], schema: pa.Schema) -> pa.Table:
    if file.endswith(".arrow"):
        with pa.memory_map(file) as source:
            rows = pa.ipc.open_file(source).read_all()
    else:
        rows = pq.read_table(file, columns=schema.names, partitioning=None).cast(schema)
    return rows.filter(pc.is_in(rows["image_id"], pa.array(image_ids, pa.string())))


def _as_published(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows with the schema's dictionaries, whose values stand in the order of the rows."""
    rows = rows.combine_chunks()
    columns: list[Any] = [
        pc.dictionary_encode(rows[field.name])
        if pa.types.is_dictionary(field.type)
        else rows[field.name]
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _row_groups(rows: pa.Table, limit: int) -> Iterator[tuple[int, int]]:
    """Start and length of slices of at most ``limit`` bytes, but for a single larger row."""
    if "mask" not in rows.column_names:
        weight = max(1, rows.nbytes // max(1, rows.num_rows))
        step = max(1, limit // weight)
        yield from ((at, min(step, rows.num_rows - at)) for at in range(0, rows.num_rows, step))
        return
    start = size = 0
    fixed = _ROW_BYTES["masks"]
    for at, length in enumerate(
        pc.binary_length(pc.struct_field(rows["mask"], "bytes")).to_pylist()
    ):
        if at > start and size + length + fixed > limit:
            yield start, at - start
            start, size = at, 0
        size += length + fixed
    if rows.num_rows > start:
        yield start, rows.num_rows - start
