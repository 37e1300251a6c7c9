"""WriteRejects: writes the rows of what has no record, by a hash of its path, to a few files."""

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
from schemas.layout import part_of
from schemas.prediction import REJECTS
from schemas.sources import SourceRow, source_table

_MAX_REJECTS = 50_000
"""Rejects in a file, which its worker holds in memory."""


class RejectFile(NamedTuple):
    """Rejects of one file.

    Attributes:
        sources, rejects: places of the Parquet files with their rows of either table.
        pairs, files: number of rejects that are pairs of two files, and that are single files.
        codes: number of rejects by their code.
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

    def expand(self, found: beam.PCollection[SourceRow | Reject]) -> beam.PCollection[RejectFile]:
        """The graph: count, key by file, group, write."""
        count = beam.pvalue.AsSingleton(found | "Count" >> beam.combiners.Count.Globally())
        keyed = found | "KeyByFile" >> beam.Map(
            lambda one, count: (part_of(_path(one), _files(count)), one), count
        )
        every = (
            found.pipeline
            | "Files" >> beam.Create([None])
            | "EveryFile"
            >> beam.FlatMap(lambda _, count: [(at, None) for at in range(_files(count))], count)
        )
        return (
            (keyed, every)
            | "AllFiles" >> beam.Flatten()
            | "GroupByFile" >> beam.GroupByKey()
            | "WriteFile" >> beam.MapTuple(self._write)
        )

    def _write(self, index: int, found: Iterable[SourceRow | Reject | None]) -> RejectFile:
        rows, alone = [], []
        for one in found:
            if isinstance(one, Reject):
                alone.append(one)
            elif one is not None:
                rows.append(one)
        rejects = sorted([*alone, *map(_reject, rows)], key=lambda one: (one.path, one.code))
        tables = {
            "sources": source_table(rows),
            "rejects": _reject_table(rejects, self.source),
        }
        places = {}
        for name, table in tables.items():
            places[name] = join(self.folder, f"left-out-{index:05d}.{name}.parquet")
            with atomic_file(places[name], self.folder) as path:
                pq.write_table(table, path)
        codes = dict(Counter(one.code for one in rejects))
        return RejectFile(**places, pairs=len(rows), files=len(alone), codes=codes)


def _files(count: int) -> int:
    return max(1, -(-count // _MAX_REJECTS))


def _path(one: SourceRow | Reject) -> str:
    return one.path if isinstance(one, Reject) else one.image_path


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
