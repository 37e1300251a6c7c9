"""A SQLite store whose writer was killed; the parts of a model's URI."""

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from runtime.errors import UserError
from runtime.mlflow_store import parse_model_uri, prepare_store, registered_version

KILLED = """
import os, signal, sqlite3, sys
store = sqlite3.connect(sys.argv[1])
store.executescript("PRAGMA cache_size = 1; CREATE TABLE runs (text)")
store.executemany("INSERT INTO runs VALUES (?)", [("x" * 4000,)] * 50)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_store_whose_writer_was_killed_can_be_used(tmp_path: Path) -> None:
    store = tmp_path / "mlflow.db"
    done = subprocess.run([sys.executable, "-c", KILLED, str(store)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert Path(f"{store}-journal").exists()
    prepare_store(f"sqlite:///{store}")
    with closing(sqlite3.connect(store)) as found:
        assert found.execute("SELECT count(*) FROM runs").fetchall() == [(0,)]


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("models:/lyft-unet/3", ("lyft-unet", "3", "")),
        ("models:/lyft-unet/latest", ("lyft-unet", "latest", "")),
        ("models:/lyft-unet@champion", ("lyft-unet", "", "champion")),
        ("models:/lyft-unet", ("lyft-unet", "", "")),
        ("models:/lyft-unet@", ("lyft-unet", "", "")),
    ],
)
def test_the_parts_of_a_models_uri(uri: str, parts: tuple[str, str, str]) -> None:
    assert parse_model_uri(uri) == parts


@pytest.mark.parametrize("uri", ["models:/lyft-unet", "models:/lyft-unet@", "models:/lyft-unet/"])
def test_a_uri_that_names_no_version_says_what_is_expected(uri: str) -> None:
    with pytest.raises(UserError, match=r"names no version: .* such as models:/lyft-unet@champion"):
        registered_version(None, uri)
