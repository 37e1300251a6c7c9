"""Reads the inventories that object stores write on a schedule, in place of listing a source.

They are tables of files: S3 Inventory, with its ``manifest.json``, or a report of Google's Storage
Insights. Formats: docs.aws.amazon.com, "Amazon S3 Inventory"; and cloud.google.com, "Storage
Insights inventory reports".
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, ValidationError

from runtime.archive import skip_reason
from runtime.errors import UserError
from runtime.listing import SourceFile
from runtime.object_store import bucket_and_key
from runtime.storage import is_remote, join, local, read_bytes
from runtime.yaml_files import explain

_PATH, _KEY, _NAME, _SIZE, _MODIFIED = "path", "key", "name", "size", "modified"

_COLUMNS = {
    "path": _PATH,
    "key": _KEY,
    "name": _NAME,
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
"""What a column means, by its name in lower case.

A path is relative to the source. So are a key and a name, but on a store they are whole keys.
"""


class _Table(BaseModel):
    key: str


class _Manifest(BaseModel):
    """What is read of the ``manifest.json`` of an S3 Inventory."""

    files: list[_Table]
    format: str = Field(alias="fileFormat")
    schema_text: str = Field(alias="fileSchema")


def inventory_tables(place: str) -> list[str]:
    """The tables of an inventory: itself, or those that an S3 Inventory's manifest names."""
    if not place.lower().endswith(".json"):
        return [place]
    manifest = _manifest(place)
    if is_remote(place):
        scheme, bucket = place.partition("://")[0], bucket_and_key(place).partition("/")[0]
        return [f"{scheme}://{bucket}/{one.key}" for one in manifest.files]
    # A copy of a manifest stands in a folder with copies of its tables.
    folder = Path(place).parent
    return [str(folder / Path(one.key).name) for one in manifest.files]


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
        if manifest.format.lower() == "csv":
            names = [name.strip() for name in manifest.schema_text.split(",")]
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


def _manifest(place: str) -> _Manifest:
    try:
        manifest = json.loads(read_bytes(place))
    except FileNotFoundError as error:
        raise UserError(f"--inventory {place!r}: there is no such file") from error
    except (OSError, ValueError) as error:
        raise UserError(f"--inventory {place!r} cannot be read: {error}") from error
    try:
        return _Manifest.model_validate(manifest)
    except ValidationError as error:
        raise UserError(
            f"--inventory {place!r}: expected the manifest.json of an S3 Inventory, with files, "
            f"fileFormat and fileSchema: {explain(error)}"
        ) from error


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
    """Meaning of each column that is read, by its name."""
    found: dict[str, str] = {}
    for name in names:
        meaning = _COLUMNS.get(name.lower())
        if meaning and names.count(name) > 1:
            raise UserError(f"--inventory {path.name!r}: expected one column {name}, found several")
        if meaning and meaning not in found.values():
            found[name] = meaning
    # Where there is a path, a name may be its last part.
    places = [meaning for meaning in (_PATH, _KEY, _NAME) if meaning in found.values()]
    if not places or _SIZE not in found.values():
        raise UserError(
            f"--inventory {path.name!r}: expected the columns path (or key, or name) and size, "
            f"perhaps modified, found {', '.join(names)}"
        )
    return {name: meaning for name, meaning in found.items() if meaning not in places[1:]}


def _file_of(row: dict[str, Any], source: str, *, url_encoded: bool) -> SourceFile | None:
    """The file of a row; None for a folder, an old version, or a file not below the source."""
    if str(row.get("is_latest")).lower() == "false" or str(row.get("is_deleted")).lower() == "true":
        return None
    path = str(row.get(_PATH) or row.get(_KEY) or row.get(_NAME) or "")
    if url_encoded:
        path = unquote_plus(path)
    if not path or path.endswith("/"):
        return None
    if "\0" in path:
        raise ValueError(f"{path!r} is not the name of a file")
    if is_remote(source) and _PATH not in row:
        root = join(bucket_and_key(source).partition("/")[2], "").lstrip("/")
        if not path.startswith(root):
            return None
        path = path.removeprefix(root)
    else:
        path = posixpath.normpath(path.removeprefix(join(source, "")))
        if path.startswith(("/", "../")):
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
    if isinstance(time, date) and not isinstance(time, datetime):
        time = datetime(time.year, time.month, time.day, tzinfo=UTC)
    if isinstance(time, datetime):
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    return float(time)
