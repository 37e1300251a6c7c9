"""A source's listing as Parquet files: a job lists it once, and workers read the parts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from beam.shared import staging as stages
from runtime import storage
from runtime.listing import SourceFile
from runtime.parquet import read_table
from runtime.storage import join

_MAX_FILES = 100_000
"""Source files in one Parquet file."""

# Paths are binary: a name need not be valid UTF-8.
_SCHEMA = pa.schema(
    [
        ("path", pa.binary()),
        ("size", pa.int64()),
        ("modified", pa.float64()),
        ("skipped", pa.string()),
        ("error", pa.string()),
    ]
)


def write_listing(files: Iterable[SourceFile], folder: str) -> Iterator[SourceFile]:
    """Passes files on, and writes them to ``listing-00000.parquet`` and so on in a local folder."""
    stream = iter(files)
    for number in count():
        if not (part := list(islice(stream, _MAX_FILES))):
            return
        rows = [
            (os.fsencode(file.path), file.size, file.modified, file.skipped, file.error)
            for file in part
        ]
        columns = [
            pa.array(values, field.type)
            for values, field in zip(zip(*rows, strict=True), _SCHEMA, strict=True)
        ]
        path = Path(folder, f"listing-{number:05d}.parquet")
        pq.write_table(pa.table(columns, schema=_SCHEMA), path, compression="zstd")
        yield from part


def read_listing(place: str) -> Iterator[SourceFile]:
    """Yields the source files of one part."""
    for batch in read_table(place).to_batches(10_000):
        for path, *others in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield SourceFile(os.fsdecode(path), *others)


def staged_listing(folder: str, staging: str) -> tuple[str, ...]:
    """Copies a listing from a local folder to the staging folder; returns its parts."""
    target = join(staging, "listing")
    stages.make_folders(target)
    places = []
    for path in sorted(Path(folder).glob("listing-*.parquet")):
        places.append(join(target, path.name))
        storage.copy(str(path), places[-1])
    return tuple(places)
