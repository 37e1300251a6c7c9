"""WriteSmallTables: writes each table of few rows as one Parquet file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq

from beam.infer.table_parts import Row
from beam.shared.atomic_writes import atomic_file
from runtime.storage import join
from schemas.layout import part_file_name


@dataclass
class WriteSmallTables(beam.PTransform):
    """Writes groups of rows, as (table, (name, rows)), to one file per table, even if it is empty.

    Groups are ordered by name, so the bytes depend on neither workers nor retries.

    Attributes:
        folder: contains a folder for each table.
        schemas: of the files, by table, with the footer's metadata.
        run_id: part of the files' names.
    """

    folder: str
    schemas: dict[str, pa.Schema]
    run_id: str

    def expand(
        self, groups: beam.PCollection[tuple[str, tuple[str, list[Row]] | None]]
    ) -> beam.PCollection[str]:
        """The graph: group by table, write; returns the paths of the files."""
        tables = groups.pipeline | "Tables" >> beam.Create([(name, None) for name in self.schemas])
        return (
            (groups, tables)
            | "AllTables" >> beam.Flatten()
            | "GroupByTable" >> beam.GroupByKey()
            | "WriteTable" >> beam.MapTuple(self._write)
        )

    def _write(self, table: str, groups: Iterable[tuple[str, list[Row]] | None]) -> str:
        place = join(self.folder, table, part_file_name(self.run_id, 0, 1))
        ordered = sorted((group for group in groups if group is not None), key=itemgetter(0))
        rows = [row for _, rows in ordered for row in rows]
        schema = self.schemas[table]
        with (
            atomic_file(place, self.folder) as path,
            pq.ParquetWriter(path, schema, compression="zstd") as writer,
        ):
            # Hugging Face's reader fails on a row group without rows.
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
        return place
