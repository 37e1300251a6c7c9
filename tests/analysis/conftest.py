"""The shared tables, opened once for the tests of a file."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from duckdb import DuckDBPyConnection

from analysis.tables import connect


@pytest.fixture(scope="module")
def database(tables: Path) -> Iterator[DuckDBPyConnection]:
    with connect(tables) as connection:
        yield connection
