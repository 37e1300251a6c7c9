"""Lists of pairs, CSV or Parquet: which image and mask belong together, their split and group."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from runtime.errors import UserError
from runtime.storage import local
from schemas.layout import SPLIT_NAMES, SPLITS

COLUMNS = ("image", "mask", "split", "group")
"""Columns of text; the first two are required."""


@dataclass(frozen=True, slots=True)
class ListedPair:
    """A row: paths below the source, with ``/``.

    Attributes:
        id: the image's path without its suffix.
        mask: None if the row names none.
        split: train, validation or test; None if it is left to the config.
        group: pairs of a group get one split; None for a pair without.
    """

    id: str
    image: str
    mask: str | None
    split: str | None
    group: str | None


def read_pair_list(place: str) -> Iterator[ListedPair]:
    """Reads a list row by row.

    Args:
        place: path or URI of a file whose name ends in .csv or .parquet.

    Raises:
        UserError: it does not exist or is no such table, or a row names no image, a path that does
            not lie below the source, or an unknown split.
    """
    number = 1
    try:
        with local(place) as path:
            for batch in _batches(path):
                for row in batch.to_pylist():
                    yield _pair_of(row, f"{place}, row {number}")
                    number += 1
    except FileNotFoundError as error:
        raise UserError(f"--pairs {place!r}: there is no such file") from error
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"--pairs {place!r} cannot be read: {error}") from error


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        with pyarrow.csv.open_csv(path) as file:
            columns = _known_columns(file.schema, path)
        # Only these are converted: another column's type may change after the first rows.
        convert = pyarrow.csv.ConvertOptions(
            include_columns=columns,
            column_types=dict.fromkeys(columns, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        )
        with pyarrow.csv.open_csv(path, convert_options=convert) as file:
            yield from file
    elif suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            columns = _known_columns(file.schema_arrow, path)
            for batch in file.iter_batches(columns=columns):
                yield pa.RecordBatch.from_arrays(
                    [column.cast(pa.string()) for column in batch.columns], columns
                )
    else:
        raise UserError(f"--pairs {path.name!r}: expected a name that ends in .csv or .parquet")


def _known_columns(schema: pa.Schema, path: Path) -> list[str]:
    missing = [name for name in COLUMNS[:2] if name not in schema.names]
    if missing:
        raise UserError(
            f"--pairs {path.name!r}: expected the columns image and mask, perhaps split and group, "
            f"found {', '.join(schema.names)}"
        )
    known = [name for name in COLUMNS if name in schema.names]
    for name in known:
        if schema.names.count(name) > 1:
            raise UserError(f"--pairs {path.name!r}: expected one column {name}, found several")
    return known


def _pair_of(row: dict[str, str | None], where: str) -> ListedPair:
    image, mask = row["image"], row["mask"]
    if not image:
        raise UserError(f"--pairs {where}: expected an image, found none")
    for path in (image, mask):
        if path and not _is_below_source(path):
            raise UserError(f"--pairs {where}: expected a path below the source, found {path!r}")
    split = row.get("split")
    if split and split.lower() not in SPLIT_NAMES:
        raise UserError(
            f"--pairs {where}: expected the split {', '.join(SPLITS)} or nothing, found {split!r}"
        )
    image = posixpath.normpath(image)
    return ListedPair(
        id=str(PurePosixPath(image).with_suffix("")),
        image=image,
        mask=posixpath.normpath(mask) if mask else None,
        split=SPLIT_NAMES[split.lower()] if split else None,
        group=row.get("group"),
    )


def _is_below_source(path: str) -> bool:
    leads_out = path.startswith("/") or "://" in path or ".." in path.split("/")
    return not leads_out and "\0" not in path and posixpath.normpath(path) != "."
