"""Parquet files, on this machine or on a store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

    Raises:
        OSError, ValueError: a file is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not isinstance(places, (str, Path)):
        return pa.concat_tables([read_table(place, columns, filters) for place in places])

    def read(store: Any, key: str) -> Any:
        options = {"filesystem": store, "page_checksum_verification": True}
        if filters is None:
            return pq.ParquetFile(key, **options).read(columns)
        return pq.read_table(key, columns=columns, filters=filters, partitioning=None, **options)

    with _damage_as_value_error():
        return request(places, read) if is_remote(places) else read(None, str(places))


def batches(place: Place, rows: int, columns: list[str]) -> Iterator[Any]:
    """Yields some columns of a Parquet file in batches of at most ``rows`` rows."""
    import pyarrow.parquet as pq

    with local(place) as path:
        yield from pq.ParquetFile(path).iter_batches(rows, columns=columns)


def read_footer(place: Place) -> Any:
    """Metadata of a Parquet file, including its schema and number of rows.

    Raises:
        OSError, ValueError: the file is missing or damaged.
    """
    import pyarrow.parquet as pq

    with _damage_as_value_error():
        if not is_remote(place):
            return pq.read_metadata(place)
        return request(place, lambda store, key: pq.read_metadata(key, filesystem=store))


@contextmanager
def _damage_as_value_error() -> Iterator[None]:
    """A damaged footer may ask for types that pyarrow does not have; its error is no ValueError."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowNotImplementedError as error:
        raise ValueError(str(error)) from error
