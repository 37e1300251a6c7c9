"""Which files belong to the tables: those named in the Parquet footer of a run's row in ``runs``.

On a store, a run's files are put before the run is published, and removed after another run has
replaced it. A reader that opens only the files named here sees one complete run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import PurePosixPath

from runtime import listing
from runtime.errors import UserError
from runtime.object_store import Place
from runtime.parquet import read_footer
from runtime.storage import join

RUN_FILE = "run.parquet"
"""File in a partition of ``runs``: the only one that keeps its name when its content changes."""

FILES_KEY = b"lyft.files"
"""Key in its footer: checksums of all other files, by ``<table>/<file>``."""


def run_file(root: Place, partition: str) -> str:
    """Place of the file that holds the row of a partition's run."""
    return join(root, "runs", partition, RUN_FILE)


def checksums(root: Place, partition: str) -> dict[str, str]:
    """Checksum of each file of the published run, by its place.

    Raises:
        OSError, ValueError: there is no run, or its footer names no files.
    """
    metadata = read_footer(run_file(root, partition)).metadata or {}
    try:
        named = json.loads(metadata[FILES_KEY])
    except KeyError as error:
        raise ValueError(f"{run_file(root, partition)} names no files") from error
    found = {}
    for name, digest in named.items():
        table, _, file = name.partition("/")
        found[join(root, table, partition, file)] = digest
    return found


def files_of(root: Place, table: str, partition: str) -> list[str]:
    """Places of the files of one table in a partition, sorted by name.

    Raises:
        OSError, ValueError: as for ``checksums``.
    """
    if table == "runs":
        return [run_file(root, partition)]
    folder = join(root, table, partition, "")
    return sorted(place for place in checksums(root, partition) if place.startswith(folder))


def partitions(root: Place) -> Iterator[str]:
    """Yields the partitions that hold a published run.

    Raises:
        UserError: the tables cannot be listed.
    """
    try:
        for file in listing.walk(join(root, "runs")):
            path = PurePosixPath(file.path)
            if path.name == RUN_FILE:
                yield str(path.parent)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return
        raise
