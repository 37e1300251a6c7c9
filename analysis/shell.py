"""SQL shell for the published tables: ``make analyse`` or ``python -m analysis.shell``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from analysis.query import run_query
from analysis.tables import add_predictions_option, connect
from runtime.command_line import Parser, run_main
from runtime.errors import UserError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

PROMPT, CONTINUATION_PROMPT = "sql> ", "...> "


def main(arguments: Sequence[str]) -> str:
    """The command line; reads statements until the input ends. Ctrl-C ends one that runs."""
    parser = Parser(prog="python -m analysis.shell", description=__doc__)
    add_predictions_option(parser)
    connection = connect(parser.parse_args(arguments).predictions)
    views = [row[0] for row in connection.sql("SHOW TABLES").fetchall()]
    print(f"Views: {', '.join(views)}. SQL ends with a semicolon; DESCRIBE masks; shows columns.")
    print("Questions to start from are in docs/cookbook.md. Ctrl-D leaves.")
    _enable_completion(views, connection)
    for statement in _read_statements():
        try:
            print(run_query(connection, statement))
        except UserError as error:
            print(f"error: {error}")
        except KeyboardInterrupt:
            print("interrupted")
    return ""


def _read_statements() -> Iterator[str]:
    """Yields the input up to each semicolon at a line's end, and the rest at the input's end.

    Ctrl-C drops unfinished input.
    """
    lines: list[str] = []
    while True:
        try:
            lines.append(input(CONTINUATION_PROMPT if lines else PROMPT))
        except EOFError:
            if lines:
                yield "\n".join(lines)
            return
        except KeyboardInterrupt:
            print()
            lines.clear()
            continue
        if lines[-1].rstrip().endswith(";"):
            yield "\n".join(lines)
            lines.clear()
        elif not "".join(lines).strip():
            lines.clear()


def _enable_completion(views: Sequence[str], connection: DuckDBPyConnection) -> None:
    """Makes Tab complete the names of views and columns, if Python has readline."""
    with contextlib.suppress(ImportError):
        import readline

        columns = connection.sql("SELECT DISTINCT column_name FROM duckdb_columns() ORDER BY 1")
        words = [*views, *(name for (name,) in columns.fetchall())]

        def complete(text: str, state: int) -> str | None:
            matches = [word for word in words if word.startswith(text)]
            return matches[state] if state < len(matches) else None

        readline.set_completer(complete)
        readline.parse_and_bind("tab: complete")


if __name__ == "__main__":
    sys.exit(run_main(main))
