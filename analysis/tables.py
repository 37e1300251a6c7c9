"""The published tables in DuckDB: a connection whose views are those of ``views.sql``."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.errors import UserError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

VIEWS = Path(__file__).with_name("views.sql")

PREDICTIONS = "outputs/predictions"
"""Where the tables lie when nothing else is said."""


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
