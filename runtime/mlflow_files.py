"""The files of a SQLite store of MLflow, which it names by absolute paths: they may have moved."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

_PATH_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Columns that hold paths, or URIs, of files."""


def find_former_folder(store: Path) -> str | None:
    """The folder in which a store's files were, if it is gone and they are beside the store now."""
    try:
        with closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)) as opened:
            found = opened.execute("SELECT artifact_location FROM experiments").fetchall()
    except sqlite3.Error:
        return None
    for (location,) in found:
        path = Path(str(location).removeprefix("file://"))
        if not path.is_absolute() or path.exists():
            continue
        # The last parts of the path, as many as possible, are found here.
        for folder in path.parents:
            if (store.parent / path.relative_to(folder)).exists():
                return str(folder)
    return None


def rewrite_paths(store: Path) -> str | None:
    """Rewrites a store's paths to where its files are now; returns their former folder, or None."""
    if (old := find_former_folder(store)) is None:
        return None
    new = str(store.parent)
    with closing(sqlite3.connect(f"{store.as_uri()}?mode=rw", uri=True)) as opened, opened:
        for table, column in _PATH_COLUMNS:
            for start in (old, f"file://{old}"):
                to = new if start == old else f"file://{new}"
                opened.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 - ours
                    f"WHERE substr({column}, 1, ?) = ?",
                    (to, len(start) + 1, len(start) + 1, f"{start}/"),
                )
    return old
