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
def whole_file(place: str, aside: str) -> Iterator[Path]:
    """A local path to write to; when the block ends, the file appears at ``place`` in one step.

    Args:
        aside: folder for unfinished files, on the same file system and not published. It is not
            used on a store, where a put is a single step.
    """
    if is_remote(place):
        with writing(place) as path:
            yield path
        return
    part = Path(aside, f"{uuid.uuid4().hex}.part")
    yield part
    os.replace(part, place)


@contextmanager
def whole_files(folder: str, aside: str, last: str) -> Iterator[Path]:
    """A local folder to write to; when the block ends, its files appear in ``folder`` one by one.

    Args:
        aside: as in ``whole_file``.
        last: name of the file that appears when all others are there.
    """
    if is_remote(folder):
        with writing_folder(folder) as made:
            yield made
        return
    made = Path(aside, uuid.uuid4().hex)
    made.mkdir()
    yield made
    for path in sorted(made.iterdir(), key=lambda path: path.name == last):
        os.replace(path, join(folder, path.name))


def take_whole(source: str, place: str, aside: str) -> None:
    """Copies or links a published file to ``place`` in one step; ``aside`` as in ``whole_file``."""
    if is_remote(place):
        copy_or_link(source, place)
        return
    with whole_file(place, aside) as part:
        copy_or_link(source, str(part))
