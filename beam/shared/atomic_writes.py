"""Writes files that several attempts at the same bundle may be writing at the same time.

An engine restarts a bundle when it has lost the bundle's machine; that machine, or a worker whose
bundle was cancelled, may continue to write for a while.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from beam.shared.staging import copy_or_link
from runtime.storage import is_remote, join, writing, writing_folder


@contextmanager
def atomic_file(place: str, scratch: str) -> Iterator[Path]:
    """A local path to write to; when the block ends, the file appears at ``place`` in one step.

    Args:
        scratch: folder for unfinished files, on the same file system and not published. It is not
            used on a store, where a put is a single step.
    """
    if is_remote(place):
        with writing(place) as path:
            yield path
        return
    part = Path(scratch, f"{uuid.uuid4().hex}.part")
    yield part
    os.replace(part, place)


@contextmanager
def atomic_files(folder: str, scratch: str, last: str) -> Iterator[Path]:
    """A local folder to write to; when the block ends, its files appear in ``folder`` one by one.

    Args:
        scratch: as in ``atomic_file``.
        last: name of the file that appears when all others are there.
    """
    if is_remote(folder):
        with writing_folder(folder) as made:
            yield made
        return
    made = Path(scratch, uuid.uuid4().hex)
    made.mkdir()
    yield made
    for path in sorted(made.iterdir(), key=lambda path: path.name == last):
        os.replace(path, join(folder, path.name))


def atomic_copy(source: str, place: str, scratch: str) -> None:
    """Copies or links a published file to ``place`` in one step; ``scratch`` as in ``atomic_file``."""
    if is_remote(place):
        copy_or_link(source, place)
        return
    with atomic_file(place, scratch) as part:
        copy_or_link(source, str(part))
