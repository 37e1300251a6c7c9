"""Atomic writes: a file appears whole, even while several attempts at one bundle write it.

An engine restarts a bundle whose machine it has lost. That machine, or a worker whose bundle was
cancelled, may still be writing.
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
        scratch: unpublished folder on the same file system, in which a killed attempt leaves its
            unfinished file. A store does not need it: a put is atomic.
    """
    if is_remote(place):
        with writing(place) as path:
            yield path
        return
    unfinished = Path(scratch, f"{uuid.uuid4().hex}.part")
    yield unfinished
    os.replace(unfinished, place)


@contextmanager
def atomic_files(folder: str, scratch: str, last: str) -> Iterator[Path]:
    """A local folder to write to; when the block ends, its files appear in ``folder`` one by one.

    Args:
        scratch: as in ``atomic_file``.
        last: name of the file that appears after all others.
    """
    if is_remote(folder):
        with writing_folder(folder) as unfinished:
            yield unfinished
        return
    unfinished = Path(scratch, uuid.uuid4().hex)
    unfinished.mkdir()
    yield unfinished
    for path in sorted(unfinished.iterdir(), key=lambda path: path.name == last):
        os.replace(path, join(folder, path.name))


def atomic_copy(source: str, place: str, scratch: str) -> None:
    """Links or copies a file to ``place`` in one step; ``scratch`` is that of ``atomic_file``."""
    if is_remote(place):
        copy_or_link(source, place)
        return
    with atomic_file(place, scratch) as unfinished:
        copy_or_link(source, str(unfinished))
