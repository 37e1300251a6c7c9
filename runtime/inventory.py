"""Reads the inventories that object stores write on a schedule, in place of listing a source.

They are tables of files: S3 Inventory, with its ``manifest.json``, or a report of Google's Storage
Insights. Formats: docs.aws.amazon.com, "Amazon S3 Inventory"; and cloud.google.com, "Storage
Insights inventory reports".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from runtime.archive import skip_reason
from runtime.errors import UserError
from runtime.listing import SourceFile
from runtime.object_store import bucket_and_key
from runtime.storage import is_remote, join, local, read_bytes

_PATH, _SIZE, _MODIFIED = "path", "size", "modified"

_COLUMNS = {
    "path": _PATH,
    "key": _PATH,
    "name": _PATH,
    "size": _SIZE,
    "modified": _MODIFIED,
    "lastmodifieddate": _MODIFIED,
    "last_modified_date": _MODIFIED,
    "updated": _MODIFIED,
    "islatest": "is_latest",
    "is_latest": "is_latest",
    "isdeletemarker": "is_deleted",
    "is_delete_marker": "is_deleted",
}
"""What a column means, by its name in lower case; ``path`` is relative to the source."""


def inventory_tables(place: str) -> list[str]:
    """The tables of an inventory: itself, or those that an S3 Inventory's manifest names."""
    if not place.lower().endswith(".json"):
        return [place]
    manifest = _manifest(place)
    if is_remote(place):
        scheme, bucket = place.partition("://")[0], bucket_and_key(place).partition("/")[0]
        return [f"{scheme}://{bucket}/{one['key']}" for one in manifest["files"]]
    # A copy of a manifest stands in a folder with copies of its tables.
    folder = Path(place).parent
    return [str(folder / Path(one["key"]).name) for one in manifest["files"]]


def read_inventory(inventory: str, table: str, source: str) -> Iterator[SourceFile]:
    """Yields the files that a table of an inventory names below a source.

    Args:
        inventory: CSV, Parquet, or an S3 Inventory's ``manifest.json``.
        table: one of ``inventory_tables(inventory)``.

    Raises:
        UserError: a table is missing, cannot be read, or lacks a column.
    """
    names = None
    if inventory.lower().endswith(".json"):
        manifest = _manifest(inventory)
        if manifest["fileFormat"].lower() == "csv":
            names = [name.strip() for name in manifest["fileSchema"].split(",")]
    url_encoded = names is not None
    try:
        with local(table) as path:
            for batch in _batches(path, names):
                for row in batch.to_pylist():
                    if file := _file_of(row, source, url_encoded=url_encoded):
                        yield file
    except FileNotFoundError as error:
        raise UserError(f"--inventory {table!r}: there is no such file") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"--inventory {table!r} cannot be read: {error}") from error


def _manifest(place: str) -> dict[str, Any]:
    try:
        manifest = json.loads(read_bytes(place))
    except FileNotFoundError as error:
        raise UserError(f"--inventory {place!r}: there is no such file") from error
    except (OSError, ValueError) as error:
        raise UserError(f"--inventory {place!r} cannot be read: {error}") from error
    expected = {"files", "fileFormat", "fileSchema"}
    if not isinstance(manifest, dict) or not expected <= manifest.keys():
        raise UserError(
            f"--inventory {place!r}: expected the manifest.json of an S3 Inventory, with "
            f"{', '.join(sorted(expected))}"
        )
    return manifest


def _batches(path: Path, names: list[str] | None) -> Iterator[pa.RecordBatch]:
    """Batches with the columns of ``_COLUMNS`` that a table has, under the names given there."""
    if path.name.lower().endswith((".csv", ".csv.gz")):
        convert = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names or _column_names(path), pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        )
        with pyarrow.csv.open_csv(
            pa.input_stream(str(path)),
            read_options=pyarrow.csv.ReadOptions(column_names=names),
            convert_options=convert,
        ) as file:
            columns = _known_columns(file.schema.names, path)
            for batch in file:
                yield batch.select(list(columns)).rename_columns(list(columns.values()))
    elif path.suffix.lower() == ".parquet":
        with pq.ParquetFile(path) as file:
            columns = _known_columns(file.schema_arrow.names, path)
            for batch in file.iter_batches(columns=list(columns)):
                yield batch.rename_columns([columns[name] for name in batch.schema.names])
    else:
        raise UserError(
            f"--inventory {path.name!r}: expected a name that ends in .csv, .csv.gz, .parquet or, "
            "for an S3 Inventory, manifest.json"
        )


def _column_names(path: Path) -> list[str]:
    """Names of a CSV file's columns, to read each as text: an id like 007 keeps its zeros."""
    with pa.input_stream(str(path)) as stream, pyarrow.csv.open_csv(stream) as file:
        return list(file.schema.names)


def _known_columns(names: list[str], path: Path) -> dict[str, str]:
    found = {name: _COLUMNS[name.lower()] for name in names if name.lower() in _COLUMNS}
    if not {_PATH, _SIZE} <= set(found.values()):
        raise UserError(
            f"--inventory {path.name!r}: expected the columns path (or key, or name) and size, "
            f"perhaps modified, found {', '.join(names)}"
        )
    return found


def _file_of(row: dict[str, Any], source: str, *, url_encoded: bool) -> SourceFile | None:
    """The file of a row; None for a folder, an old version, or a file not below the source."""
    if str(row.get("is_latest")).lower() == "false" or str(row.get("is_deleted")).lower() == "true":
        return None
    path = str(row[_PATH] or "")
    if url_encoded:
        path = unquote_plus(path)
    if is_remote(source):
        # The inventory names keys of the bucket.
        prefix = join(bucket_and_key(source).partition("/")[2], "").lstrip("/")
        if not path.startswith(prefix):
            return None
        path = path.removeprefix(prefix)
    if not path or path.endswith("/"):
        return None
    return SourceFile(path, int(row[_SIZE] or 0), _epoch(row.get(_MODIFIED)), skip_reason(path))


def _epoch(time: Any) -> float:
    """Seconds since the epoch; 0 if the inventory does not say."""
    if time is None or time == "":
        return 0.0
    if isinstance(time, str):
        try:
            return float(time)
        except ValueError:
            time = datetime.fromisoformat(time)
    if isinstance(time, datetime):
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    return float(time)
