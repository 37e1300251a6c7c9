"""Repairs the absolute paths of files in a SQLite store of MLflow whose folder has been moved."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

_PATH_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Columns that hold paths, or URIs, of files."""


def find_former_folder(store: Path) -> str | None:
    """The folder that a store names, if it is gone and its files are beside the store now."""
    try:
        with closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)) as connection:
            found = connection.execute("SELECT artifact_location FROM experiments").fetchall()
    except sqlite3.Error:
        return None
    for (location,) in found:
        path = _path(str(location))
        if not path.is_absolute() or path.exists():
            continue
        # The longest end of the path that exists here.
        for folder in path.parents:
            if (store.parent / path.relative_to(folder)).exists():
                return str(folder)
    return None


def rewrite_paths(store: Path) -> str | None:
    """Rewrites a store's paths to where its files are now; returns their former folder, or None."""
    if (old := find_former_folder(store)) is None:
        return None
    new = str(store.parent)
    # A URI has %20 for a space, as MLflow's server writes it, or the path as it is.
    prefixes = {
        old: new,
        f"file://{old}": store.parent.as_uri(),
        Path(old).as_uri(): store.parent.as_uri(),
    }
    with closing(sqlite3.connect(f"{store.as_uri()}?mode=rw", uri=True)) as connection, connection:
        for table, column in _PATH_COLUMNS:
            for start, to in prefixes.items():
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 - ours
                    f"WHERE substr({column}, 1, ?) = ?",
                    (to, len(start) + 1, len(start) + 1, f"{start}/"),
                )
    return old


def _path(location: str) -> Path:
    """The path that a store names, as such or as a URI."""
    path = location.removeprefix("file://")
    return Path(path if path == location else unquote(path))
