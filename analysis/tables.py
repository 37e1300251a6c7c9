"""Opens the published tables in DuckDB, with the views of ``views.sql``; selects a run."""

from __future__ import annotations

import argparse
import glob
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import UserError
from runtime.object_store import bucket_and_key
from runtime.storage import filesystem, is_folder, is_remote, join
from schemas.layout import LEGACY_FOLDERS, partition_value, safe_name
from schemas.prediction import SCHEMAS, plain
from schemas.published import checksums, partitions, run_file

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

VIEWS = Path(__file__).with_name("views.sql")

PREDICTIONS = "outputs/predictions"
"""Default folder of the tables."""

_VIEW = re.compile(r"^CREATE OR REPLACE VIEW (\w+) AS FROM published\('(\w+)'\);$", re.MULTILINE)
"""Matches a view in ``views.sql`` that is one table without a query."""

PARTITION_COLUMNS = ("model", "version", "source")
"""Partition columns; each partition holds one run."""


def connect(predictions: str | Path = PREDICTIONS) -> DuckDBPyConnection:
    """Opens an in-memory database with the views; queries read the Parquet files.

    Args:
        predictions: output of ``python -m beam.infer``, a folder or a URI.

    Raises:
        UserError: a table is missing, or one of its files is damaged.
    """
    import duckdb

    if not is_folder(join(predictions, "runs")):
        raise UserError(
            f"predictions {str(predictions)!r}: there is no table of runs; "
            "name the output folder of `python -m beam.infer`"
        )
    connection = duckdb.connect()
    views = VIEWS.read_text(encoding="utf-8")
    try:
        if is_remote(predictions):
            tables = _open_on_store(str(predictions).rstrip("/"))
            for view, name in _VIEW.findall(views):
                connection.register(view, tables[name])
            views = _VIEW.sub("", views)
        else:
            folder = glob.escape(str(Path(predictions).absolute()))
            connection.execute("SET VARIABLE predictions = $folder", {"folder": folder})
        connection.execute(views)
    except (duckdb.Error, OSError, ValueError) as error:
        raise UserError(
            f"predictions {str(predictions)!r}: {one_line(error)}; "
            "run `python -m beam.infer` again to write all tables"
        ) from error
    return connection


@contextmanager
def reading(predictions: str | Path) -> Iterator[None]:
    """Turns DuckDB's errors into a UserError: files may be damaged, or replaced at this moment.

    Raises:
        UserError: the block raised one.
    """
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        raise UserError(
            f"predictions {str(predictions)!r}: {one_line(error)}; run this again if a job has "
            "just replaced them; `python -m beam.verify` names damaged files"
        ) from error


def _open_on_store(root: str) -> dict[str, Any]:
    """The tables on a store, as pyarrow datasets of the files that the published runs list.

    DuckDB itself would download an extension and select files by pattern, also stale ones.
    """
    import pyarrow as pa
    from pyarrow import dataset

    runs = list(partitions(root))
    if not runs:
        raise UserError(f"predictions {root!r}: there is no published run")
    files = [file for run in runs for file in (*checksums(root, run), run_file(root, run))]
    store, _ = filesystem(root)
    # In DuckDB's order of partition columns.
    keys = pa.schema([(name, pa.string()) for name in sorted(PARTITION_COLUMNS)])

    def table(name: str, schema: pa.Schema) -> Any:
        folders = tuple(join(root, folder, "") for folder in (name, LEGACY_FOLDERS.get(name, name)))
        return dataset.dataset(
            [bucket_and_key(file) for file in files if file.startswith(folders)],
            schema=pa.schema(
                [*plain(schema), *(key for key in keys if key.name not in schema.names)]
            ),
            format="parquet",
            filesystem=store,
            partitioning=dataset.partitioning(keys, flavor="hive"),
            partition_base_dir=bucket_and_key(root),
        )

    return {name: table(name, schema) for name, schema in SCHEMAS.items()}


def one_line(error: Exception) -> str:
    """DuckDB's error message in one line, without the excerpt of the query."""
    return " ".join(str(error).split("\n\nLINE ")[0].split())


def add_predictions_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--predictions``, for ``connect``."""
    parser.add_argument(
        "--predictions", default=PREDICTIONS, help=f"the tables (default: {PREDICTIONS})"
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--predictions``, and the options for ``select_run``."""
    add_predictions_option(parser)
    parser.add_argument("--partition", help="model=NAME/version=vN/source=NAME; or some of these:")
    for name in PARTITION_COLUMNS:
        parser.add_argument(f"--{name}", help=f"{name} of the run")


def select_run(connection: DuckDBPyConnection, args: argparse.Namespace) -> dict[str, Any]:
    """The row of ``runs`` that the options select.

    Raises:
        UserError: they select no run or several; the message names the candidates.
    """
    wanted = {
        key: getattr(args, key) for key in PARTITION_COLUMNS if getattr(args, key) is not None
    }
    for part in (args.partition or "").strip("/").split("/"):
        key, separator, value = part.partition("=")
        if separator and key in PARTITION_COLUMNS:
            wanted[key] = value
        elif part:
            raise UserError(f"partition {args.partition!r}: expected model=…/version=…/source=…")
    result = connection.sql("FROM runs ORDER BY model, version, source")
    rows = [dict(zip(result.columns, row, strict=True)) for row in result.fetchall()]
    marked = {key: partition_value(safe_name(value)) for key, value in wanted.items()}
    selected = [row for row in rows if wanted.items() <= row.items()] or [
        row
        for row in rows
        if all(row[key] in (wanted[key], value) for key, value in marked.items())
    ]
    if len(selected) != 1:
        names = "; ".join(
            "/".join(f"{key}={row[key]}" for key in PARTITION_COLUMNS) for row in selected or rows
        )
        raise UserError(
            f"{len(selected)} runs are chosen, expected one; choose by --partition, --model, "
            f"--version or --source from: {names}"
        )
    return selected[0]


def partition_key(run: dict[str, Any]) -> dict[str, str]:
    """SQL parameters for ``(model, version, source) = ($model, $version, $source)``."""
    return {key: run[key] for key in PARTITION_COLUMNS}
