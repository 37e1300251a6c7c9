"""A SQLite store whose writer was killed."""

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from runtime.mlflow_store import prepare_store

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
