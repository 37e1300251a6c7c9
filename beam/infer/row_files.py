"""WriteRowFiles and GatherRows: rows wait in files; only references to them cross the shuffle.

Each worker writes its rows to Arrow files. When all rows are written, each part of a table is
gathered from the files that hold its images: files of this run, or of the published run for images
that have not changed.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from beam.infer.table_parts import Columns, Row, RowRef, write_part
from beam.shared.atomic_writes import atomic_file
from runtime.storage import join, writing
from schemas.layout import part_file_name, part_hash, part_index
from schemas.prediction import CLASS_STATS, MASKS, plain

PartKey = tuple[str, int, int]
"""Table, index of the part, number of parts."""

_FLUSH_IMAGES, _FLUSH_BYTES = 512, 16 << 20
_BATCH_IMAGES = 16
"""Images in a record batch, the least of a file that is read."""


class WriteRowFiles(beam.DoFn):
    """Writes rows to Arrow files of a few MiB in ``folder`` and yields a RowRef for each image.

    Rows are in the order of the parts, so that a part reads only some record batches of each file.
    A retried bundle writes new files; those of the first attempt are never read.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def start_bundle(self) -> None:
        """Called by Beam before each bundle."""
        self._masks: list[Row] = []
        self._classes: list[Columns] = []
        self._size = 0

    def process(self, element: tuple[Row, Columns]) -> Iterator[RowRef]:
        """Collects rows until there are enough for a file."""
        mask, classes = element
        self._masks.append(mask)
        self._classes.append(classes)
        self._size += mask["mask_size"]
        if len(self._masks) >= _FLUSH_IMAGES or self._size > _FLUSH_BYTES:
            yield from self._flush()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Called by Beam after each bundle; writes the remaining rows."""
        window = GlobalWindow()
        for ref in self._flush():
            yield WindowedValue(ref, window.max_timestamp(), [window])

    def _flush(self) -> Iterator[RowRef]:
        if not self._masks:
            return
        rows = sorted(
            zip(self._masks, self._classes, strict=True),
            key=lambda row: part_hash(row[0]["image_id"]),
        )
        masks = pa.Table.from_pylist([mask for mask, _ in rows], schema=plain(MASKS))
        columns = {
            name: [value for _, classes in rows for value in classes[name]]
            for name in CLASS_STATS.names
        }
        stats = pa.table(columns, schema=plain(CLASS_STATS))
        stem = join(self._folder, uuid.uuid4().hex)
        files = {}
        for name, table in (("masks", masks), ("class_stats", stats)):
            files[name] = f"{stem}.{name}.arrow"
            batch_rows = _BATCH_IMAGES * table.num_rows // len(rows)
            with writing(files[name]) as path, pa.ipc.new_file(str(path), table.schema) as writer:
                writer.write_table(table, max_chunksize=batch_rows)
        for index, (mask, classes) in enumerate(rows):
            size, batch = mask["mask_size"], index // _BATCH_IMAGES
            yield RowRef(mask["image_id"], files, len(classes["class_id"]), size, batch)
        self.start_bundle()


@dataclass
class GatherRows(beam.PTransform):
    """Gathers rows by their references into Parquet files; returns table and path of each file.

    The number of files keeps each below a target size. A hash of the image's id decides its file,
    and rows are sorted by id. So the bytes depend neither on workers and retries nor on the run
    that predicted an image.

    Attributes:
        folder: contains a folder for each table.
        schemas: of the files, by table, with the footer's metadata.
        part_bytes: approximate maximum size of a file.
        row_group_bytes: maximum of uncompressed bytes in a row group with several rows.
        run_id: of all rows, including those that another run predicted.
    """

    folder: str
    schemas: dict[str, pa.Schema]
    part_bytes: int
    row_group_bytes: int
    run_id: str

    def expand(self, refs: beam.PCollection[RowRef]) -> beam.PCollection[tuple[str, str]]:
        """The graph: sum sizes, key by table and part, group, write."""
        total = beam.pvalue.AsSingleton(
            refs
            | "Sizes" >> beam.Map(lambda ref: [ref.bytes_in(table) for table in self.schemas])
            | "TotalSizes" >> beam.CombineGlobally(_sums).without_defaults(),
            default_value=[0] * len(self.schemas),
        )
        keyed = refs | "KeyByPart" >> beam.FlatMap(self._keys, total)
        # An empty part gets a file, too: otherwise the numbers of the parts have gaps.
        all_keys = (
            refs.pipeline
            | "Tables" >> beam.Create([None])
            | "EveryPart" >> beam.FlatMap(self._all_keys, total)
        )
        return (
            (keyed, all_keys)
            | "AllParts" >> beam.Flatten()
            | "GroupByPart" >> beam.GroupByKey()
            | "WritePart" >> beam.MapTuple(self._write)
        )

    def _parts(self, totals: list[int]) -> dict[str, int]:
        sizes = zip(self.schemas, totals, strict=True)
        return {table: max(1, -(-size // self.part_bytes)) for table, size in sizes}

    def _keys(self, ref: RowRef, totals: list[int]) -> Iterator[tuple[PartKey, RowRef]]:
        for table, parts in self._parts(totals).items():
            yield (table, part_index(ref.image_id, parts), parts), ref

    def _all_keys(self, _: None, totals: list[int]) -> Iterator[tuple[PartKey, None]]:
        for table, parts in self._parts(totals).items():
            for part in range(parts):
                yield (table, part, parts), None

    def _write(self, key: PartKey, refs: Iterable[RowRef | None]) -> tuple[str, str]:
        table, part, parts = key
        place = join(self.folder, table, part_file_name(self.run_id, part, parts))
        with atomic_file(place, self.folder) as path:
            rows = filter(None, refs)
            write_part(path, table, rows, self.schemas[table], self.row_group_bytes)
        return table, place


def _sums(sizes: Iterable[list[int]]) -> list[int]:
    return [sum(column) for column in zip(*sizes, strict=True)]
