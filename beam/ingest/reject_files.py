"""WriteRejects: writes the rows of all rejects, partitioned by a hash of their paths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq

from beam.shared.atomic_writes import atomic_file
from beam.shared.pairing import Reject
from runtime.storage import join
from schemas.layout import part_index
from schemas.prediction import REJECTS
from schemas.sources import SourceRow, source_table

_MAX_REJECTS = 50_000
"""Number of rejects in one partition, which a worker holds in memory."""


class RejectFile(NamedTuple):
    """One partition of the rejects.

    Attributes:
        sources, rejects: Parquet files with their rows of either table.
        pairs, files: number of rejects that are pairs, and that are single files.
        codes: number of rejects by code.
    """

    sources: str
    rejects: str
    pairs: int
    files: int
    codes: dict[str, int]


@dataclass
class WriteRejects(beam.PTransform):
    """Writes rows of rejected pairs, and rejects of files that form no pair.

    Attributes:
        folder: where the files are written; source: root of the paths.
    """

    folder: str
    source: str

    def expand(self, inputs: beam.PCollection[SourceRow | Reject]) -> beam.PCollection[RejectFile]:
        """The graph: count, key by partition, group, write."""
        count = beam.pvalue.AsSingleton(inputs | "Count" >> beam.combiners.Count.Globally())
        keyed = inputs | "KeyByFile" >> beam.Map(
            lambda rejected, count: (part_index(_path(rejected), _partitions(count)), rejected),
            count,
        )
        # There is at least one file, even without rejects.
        all_keys = (
            inputs.pipeline
            | "Files" >> beam.Create([None])
            | "EveryFile"
            >> beam.FlatMap(lambda _, count: [(i, None) for i in range(_partitions(count))], count)
        )
        return (
            (keyed, all_keys)
            | "AllFiles" >> beam.Flatten()
            | "GroupByFile" >> beam.GroupByKey()
            | "WriteFile" >> beam.MapTuple(self._write)
        )

    def _write(self, index: int, inputs: Iterable[SourceRow | Reject | None]) -> RejectFile:
        known = [rejected for rejected in inputs if rejected is not None]
        files = [rejected for rejected in known if isinstance(rejected, Reject)]
        rows = [rejected for rejected in known if isinstance(rejected, SourceRow)]
        rejects = sorted([*files, *map(_reject, rows)], key=lambda one: (one.path, one.code))
        tables = {"sources": source_table(rows), "rejects": _reject_table(rejects, self.source)}
        places = {}
        for name, table in tables.items():
            places[name] = join(self.folder, f"left-out-{index:05d}.{name}.parquet")
            with atomic_file(places[name], self.folder) as path:
                pq.write_table(table, path)
        codes = dict(Counter(reject.code for reject in rejects))
        return RejectFile(**places, pairs=len(rows), files=len(files), codes=codes)


def _partitions(count: int) -> int:
    return max(1, -(-count // _MAX_REJECTS))


def _path(rejected: SourceRow | Reject) -> str:
    return rejected.path if isinstance(rejected, Reject) else rejected.image_path


def _reject(row: SourceRow) -> Reject:
    return Reject(
        row.id, str(row.reject_path), "check", str(row.reject_code), str(row.reject_message)
    )


def _reject_table(rejects: Iterable[Reject], source: str) -> pa.Table:
    rows = [(one.id, join(source, one.path), one.stage, one.code, one.message) for one in rejects]
    names = REJECTS.names
    return pa.Table.from_pylist(
        [dict(zip(names, row, strict=True)) for row in rows], schema=REJECTS
    )
