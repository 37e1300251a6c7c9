"""WriteRowFiles and GatherRows: rows wait in files; only references to them cross the shuffle.

Each worker writes its rows to Arrow files. When all rows are written, several of these are merged
to one that is ordered by part, so that a part opens few files; and each part is gathered from the
merged files and, for images that have not changed, from the published run's files.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from beam.infer.table_parts import (
    Columns,
    ReusedRows,
    Row,
    Slice,
    gather,
    new_row_file,
    read_row_files,
    row_bytes,
    write_in_parts,
    write_part,
)
from beam.shared.atomic_writes import atomic_file
from runtime.storage import join, writing
from schemas.layout import part_file_name, part_index
from schemas.prediction import CLASS_STATS, MASKS, plain

PartKey = tuple[str, int, int]
"""Table, index of the part, number of parts."""

Totals = list[int]
"""Approximate bytes of all rows of ``masks``, of those of ``class_stats``, which are always fewer,
and of the new rows of ``masks``."""

_TABLES = ("masks", "class_stats")
_FLUSH_IMAGES, _FLUSH_BYTES = 512, 16 << 20


class RowFile(NamedTuple):
    """Rows of some images that wait for their parts, in one Arrow file for each table.

    Attributes:
        stem: place of the files without their suffixes.
        sizes: approximate bytes that the rows take in a published file, by table.
    """

    stem: str
    sizes: dict[str, int]

    def file(self, table: str) -> str:
        """Place of the file with a table's rows."""
        return f"{self.stem}.{table}.arrow"


class WriteRowFiles(beam.DoFn):
    """Writes rows to Arrow files of a few MiB in ``folder`` and yields a RowFile for each.

    A retried bundle writes new files; those of the first attempt are never read.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def start_bundle(self) -> None:
        """Called by Beam before each bundle."""
        self._masks: list[Row] = []
        self._classes: list[Columns] = []
        self._size = 0

    def process(self, element: tuple[Row, Columns]) -> Iterator[RowFile]:
        """Collects rows until there are enough for a file."""
        mask, classes = element
        self._masks.append(mask)
        self._classes.append(classes)
        self._size += mask["mask_size"]
        if len(self._masks) >= _FLUSH_IMAGES or self._size > _FLUSH_BYTES:
            yield self._flush()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Called by Beam after each bundle; writes the remaining rows."""
        if self._masks:
            window = GlobalWindow()
            yield WindowedValue(self._flush(), window.max_timestamp(), [window])

    def _flush(self) -> RowFile:
        columns = {
            name: [value for classes in self._classes for value in classes[name]]
            for name in CLASS_STATS.names
        }
        rows = {
            "masks": pa.Table.from_pylist(self._masks, schema=plain(MASKS)),
            "class_stats": pa.table(columns, schema=plain(CLASS_STATS)),
        }
        sizes = {
            table: sum(
                row_bytes(table, mask["mask_size"], len(classes["class_id"]))
                for mask, classes in zip(self._masks, self._classes, strict=True)
            )
            for table in _TABLES
        }
        row_file = RowFile(join(self._folder, uuid.uuid4().hex), sizes)
        for table in _TABLES:
            with (
                writing(row_file.file(table)) as path,
                new_row_file(path, rows[table].schema) as writer,
            ):
                writer.write_table(rows[table])
        self.start_bundle()
        return row_file


@dataclass
class GatherRows(beam.PTransform):
    """Gathers rows into Parquet files; returns table and path of each file.

    Takes a dict: ``new``, RowFiles; and ``reused``, images whose published rows are taken over.

    The number of files keeps each below a target size. A hash of the image's id decides its file,
    and rows are sorted by id. So the bytes depend neither on workers and retries nor on the run
    that predicted an image.

    Attributes:
        folder: contains a folder for each table.
        spool: folder of merged row files.
        schemas: of the files of ``masks`` and ``class_stats``, with the footer's metadata.
        part_bytes: approximate maximum size of a file.
        row_group_bytes: maximum of uncompressed bytes in a row group with several rows.
        run_id: of all rows, including those that another run predicted.
        classes: number of rows of ``class_stats`` for each image.
        published: files of the published run, by table, in the order of their parts.
    """

    folder: str
    spool: str
    schemas: dict[str, pa.Schema]
    part_bytes: int
    row_group_bytes: int
    run_id: str
    classes: int
    published: dict[str, tuple[str, ...]]

    def expand(
        self, rows: dict[str, beam.PCollection[RowFile | ReusedRows]]
    ) -> beam.PCollection[tuple[str, str]]:
        """The graph: sum sizes, merge row files, key by table and part, group, write."""
        new, reused = rows["new"], rows["reused"]
        sizes = (
            new | "SizesOfNew" >> beam.Map(_sizes_of_new),
            reused | "SizesOfReused" >> beam.Map(self._sizes_of_reused),
        )
        total = beam.pvalue.AsSingleton(
            sizes
            | "Sizes" >> beam.Flatten()
            | "TotalSizes" >> beam.CombineGlobally(_sums).without_defaults(),
            default_value=[0, 0, 0],
        )
        slices = (
            new
            | "KeyForMerge" >> beam.Map(self._merge_key, total)
            | "GroupForMerge" >> beam.GroupByKey()
            | "Merge" >> beam.FlatMap(self._merge, total)
        )
        keyed = reused | "KeyByPart" >> beam.FlatMap(self._keys, total)
        # An empty part gets a file, too: otherwise the numbers of the parts have gaps.
        all_keys = (
            new.pipeline
            | "Tables" >> beam.Create([None])
            | "EveryPart" >> beam.FlatMap(self._all_keys, total)
        )
        return (
            (slices, keyed, all_keys)
            | "AllParts" >> beam.Flatten()
            | "GroupByPart" >> beam.GroupByKey()
            | "WritePart" >> beam.MapTuple(self._write)
        )

    def _sizes_of_reused(self, reused: ReusedRows) -> Totals:
        return [*(row_bytes(table, reused[1], self.classes) for table in _TABLES), 0]

    def _parts(self, totals: Totals) -> dict[str, int]:
        return {table: self._files(size) for table, size in zip(_TABLES, totals[:-1], strict=True)}

    def _files(self, size: int) -> int:
        return max(1, -(-size // self.part_bytes))

    def _merge_key(self, file: RowFile, totals: Totals) -> tuple[str, RowFile]:
        """Files with the same key are merged; together they are about as large as a part."""
        if max(self._parts(totals).values()) == 1:
            # A single part may as well open them all.
            return file.stem, file
        return str(part_index(file.stem, self._files(totals[-1]))), file

    def _merge(
        self, group: tuple[str, Iterable[RowFile]], totals: Totals
    ) -> Iterator[tuple[PartKey, Slice]]:
        files, parts = list(group[1]), self._parts(totals)
        merged = RowFile(join(self.spool, uuid.uuid4().hex), {})
        for table, count in parts.items():
            if max(parts.values()) == 1:
                for file in files:
                    yield (table, 0, 1), Slice(file.file(table), 0)
                continue
            whole = [Slice(file.file(table), 0) for file in files]
            with writing(merged.file(table)) as path:
                found = write_in_parts(path, read_row_files(whole), count)
            for batch, part in enumerate(found):
                yield (table, part, count), Slice(merged.file(table), batch)

    def _keys(self, reused: ReusedRows, totals: Totals) -> Iterator[tuple[PartKey, ReusedRows]]:
        for table, parts in self._parts(totals).items():
            yield (table, part_index(reused[0], parts), parts), reused

    def _all_keys(self, _: None, totals: Totals) -> Iterator[tuple[PartKey, None]]:
        for table, parts in self._parts(totals).items():
            for part in range(parts):
                yield (table, part, parts), None

    def _write(
        self, key: PartKey, references: Iterable[Slice | ReusedRows | None]
    ) -> tuple[str, str]:
        table, part, parts = key
        place = join(self.folder, table, part_file_name(self.run_id, part, parts))
        with atomic_file(place, self.folder) as path:
            rows = gather(table, filter(None, references), self.published.get(table, ()))
            write_part(path, table, rows, self.schemas[table], self.row_group_bytes)
        return table, place


def _sizes_of_new(file: RowFile) -> Totals:
    return [*(file.sizes[table] for table in _TABLES), file.sizes["masks"]]


def _sums(sizes: Iterable[Totals]) -> Totals:
    return [sum(column) for column in zip(*sizes, strict=True)]
