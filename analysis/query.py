"""Runs one SQL query over the published tables: ``python -m analysis.query "SELECT …"``."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, wait
from decimal import Decimal
from itertools import count
from typing import TYPE_CHECKING, Any

from analysis.tables import add_predictions_option, connect, one_line
from runtime.command_line import Parser, run_main
from runtime.errors import UserError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

FORMATS = ("table", "csv", "json")


def main(arguments: Sequence[str]) -> str:
    """The command line; returns the result as text."""
    parser = Parser(prog="python -m analysis.query", description=__doc__)
    parser.add_argument("sql", help="one query over the views of analysis/views.sql; - reads it")
    add_predictions_option(parser)
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="table",
        help="(default: table); pandas takes a class None in csv for a missing value, unless it is "
        "read with keep_default_na=False, na_values=['']",
    )
    args = parser.parse_args(arguments)
    sql = sys.stdin.read() if args.sql == "-" else args.sql
    return run_query(connect(args.predictions), sql, args.format)


def run_query(connection: DuckDBPyConnection, sql: str, form: str = "table") -> str:
    """The result of a query as text: a readable ``table``, ``csv``, or a ``json`` object per line.

    Of several statements, the results follow each other.

    Raises:
        UserError: DuckDB cannot run the query; the message is one line.
        KeyboardInterrupt: Ctrl-C, while DuckDB ran it.
    """
    import duckdb
    from duckdb import ExpectedResultType

    def run() -> str:
        results = []
        # Of all at once, DuckDB would return the result of the last one alone.
        for statement in connection.extract_statements(sql):
            relation = connection.sql(_without_end(statement.query))
            # A statement without a result is SET, for example.
            has_result = ExpectedResultType.QUERY_RESULT in statement.expected_result_type
            if relation is not None and has_result:
                results.append(_format(relation, form))
        return "\n".join(filter(None, results))

    outcome: Future[str] = Future()

    def answer() -> None:
        if outcome.set_running_or_notify_cancel():
            try:
                outcome.set_result(run())
            except Exception as error:  # noqa: BLE001 - whose result is asked for raises it
                outcome.set_exception(error)

    try:
        # In a thread, since DuckDB does not notice Ctrl-C itself until the query ends.
        threading.Thread(target=answer, daemon=True).start()
        return outcome.result()
    except KeyboardInterrupt:
        # DuckDB forgets an interruption that comes before it has begun.
        while not (outcome.cancel() or outcome.done()):
            connection.interrupt()
            wait([outcome], timeout=0.1)
        raise
    except duckdb.Error as error:
        raise UserError(f"query: {one_line(error)}") from error


def _without_end(statement: str) -> str:
    """A statement up to its semicolon; behind it, DuckDB's relations take no comment."""
    import duckdb

    text = statement.encode()
    for start, kind in reversed(duckdb.tokenize(statement)):
        if kind != duckdb.token_type.comment:
            return (text[:start] if text[start:].startswith(b";") else text).decode()
    return statement


def _format(relation: DuckDBPyRelation, form: str) -> str:
    out = io.StringIO()
    if form == "table":
        with contextlib.redirect_stdout(out):
            relation.show(max_rows=100, max_width=200, null_value="")
    elif form == "csv":
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(relation.columns)
        writer.writerows(map(_as_cell, row) for row in relation.fetchall())
    else:
        names = _distinct(relation.columns)
        for row in relation.fetchall():
            values = dict(zip(names, map(_jsonable, row), strict=True))
            out.write(json.dumps(values, default=_as_text, ensure_ascii=False) + "\n")
    return out.getvalue().rstrip("\n")


def _as_cell(value: Any) -> Any:
    """A value of a CSV file: nested ones in JSON, bytes in hexadecimal digits."""
    if isinstance(value, dict | list | tuple):
        return json.dumps(_jsonable(value), default=_as_text, ensure_ascii=False)
    return value.hex() if isinstance(value, bytes) else value


def _distinct(columns: Sequence[str]) -> list[str]:
    """The names of columns, as those of a subquery: the second ``a`` is ``a_1``."""
    names: list[str] = []
    for column in columns:
        candidates = (f"{column}_{number}" if number else column for number in count())
        names.append(next(name for name in candidates if name not in names))
    return names


def _jsonable(value: Any) -> Any:
    """The value as JSON has it: decimals as numbers, None for NaN and infinity, names as text."""
    if isinstance(value, dict):
        return {
            name if isinstance(name, str) else _as_text(name): _jsonable(part)
            for name, part in value.items()
        }
    if isinstance(value, list | tuple):
        return list(map(_jsonable, value))
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_text(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


if __name__ == "__main__":
    sys.exit(run_main(main))
