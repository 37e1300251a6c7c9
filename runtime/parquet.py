"""Parquet files, on this machine or on a store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from runtime.object_store import Place, request
from runtime.storage import is_remote, local


def read_table(
    places: Place | Sequence[str], columns: list[str] | None = None, filters: Any = None
) -> Any:
    """Reads a Parquet file, or several with the same schema, as a table.

    Folder names do not become columns. From a store, only what is asked for is read.

    Args:
        filters: as for ``pyarrow.parquet.read_table``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not isinstance(places, (str, Path)):
        return pa.concat_tables([read_table(place, columns, filters) for place in places])

    def read(store: Any, key: str) -> Any:
        if filters is None:
            return pq.ParquetFile(key, filesystem=store).read(columns)
        return pq.read_table(
            key, columns=columns, filters=filters, filesystem=store, partitioning=None
        )

    return request(places, read) if is_remote(places) else read(None, str(places))


def batches(place: Place, rows: int, columns: list[str]) -> Iterator[Any]:
    """Yields some columns of a Parquet file in batches of at most ``rows`` rows."""
    import pyarrow.parquet as pq

    with local(place) as path:
        yield from pq.ParquetFile(path).iter_batches(rows, columns=columns)


def read_footer(place: Place) -> Any:
    """Metadata of a Parquet file, including its schema and number of rows."""
    import pyarrow.parquet as pq

    if not is_remote(place):
        return pq.read_metadata(place)
    return request(place, lambda store, key: pq.read_metadata(key, filesystem=store))
