"""The published tables in DuckDB: a connection whose views are those of ``views.sql``."""

from __future__ import annotations

import argparse
import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import UserError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

VIEWS = Path(__file__).with_name("views.sql")

PREDICTIONS = "outputs/predictions"
"""Where the tables lie when nothing else is said."""

KEYS = ("model", "version", "source")
"""Columns of the partitions: a run is a partition."""


def connect(predictions: str | Path = PREDICTIONS) -> DuckDBPyConnection:
    """An in-memory database with the views; queries read the Parquet files.

    Args:
        predictions: output folder of ``python -m beam.infer``.

    Raises:
        UserError: the folder lacks a table.
    """
    import duckdb

    folder = Path(predictions)
    if not (folder / "runs").is_dir():
        raise UserError(
            f"predictions {str(predictions)!r}: there is no table of runs; "
            "name the output folder of `python -m beam.infer`"
        )
    connection = duckdb.connect()
    connection.execute(
        "SET VARIABLE predictions = $folder", {"folder": glob.escape(str(folder.absolute()))}
    )
    try:
        connection.execute(VIEWS.read_text(encoding="utf-8"))
    except duckdb.IOException as error:
        raise UserError(
            f"predictions {str(predictions)!r}: {first_line(error)}; "
            "run `python -m beam.infer` again to write all tables"
        ) from error
    return connection


def first_line(error: Exception) -> str:
    """What DuckDB complains of, in one line, without the excerpt of the query."""
    return " ".join(str(error).split("\n\nLINE ")[0].split())


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Options that choose one run, for ``one_run``."""
    parser.add_argument(
        "--predictions", default=PREDICTIONS, help=f"the tables (default: {PREDICTIONS})"
    )
    parser.add_argument("--partition", help="model=NAME/version=vN/source=NAME; or some of these:")
    for name in KEYS:
        parser.add_argument(f"--{name}", help=f"{name} of the run")


def one_run(connection: DuckDBPyConnection, args: argparse.Namespace) -> dict[str, Any]:
    """The row of ``runs`` that the options choose.

    Raises:
        UserError: they choose none, or several; names those that there are.
    """
    wanted = {key: getattr(args, key) for key in KEYS if getattr(args, key) is not None}
    for part in (args.partition or "").strip("/").split("/"):
        key, found, value = part.partition("=")
        if found and key in KEYS:
            wanted[key] = value
        elif part:
            raise UserError(f"partition {args.partition!r}: expected model=…/version=…/source=…")
    result = connection.sql("FROM runs ORDER BY model, version, source")
    rows = [dict(zip(result.columns, row, strict=True)) for row in result.fetchall()]
    chosen = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    if len(chosen) != 1:
        names = "; ".join("/".join(f"{key}={row[key]}" for key in KEYS) for row in chosen or rows)
        raise UserError(
            f"{len(chosen)} runs are chosen, expected one; choose by --partition, --model, "
            f"--version or --source from: {names}"
        )
    return chosen[0]


def key_of(run: dict[str, Any]) -> dict[str, str]:
    """Parameters of ``(model, version, source) = ($model, $version, $source)`` for a run's rows."""
    return {key: run[key] for key in KEYS}
