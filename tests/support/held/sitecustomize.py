"""Holds Python workers in the middle of their work, so that a test can end them there.

A worker that starts with this folder first in PYTHONPATH stands still once it has published the
counter HELD_AT, as long as the folder HELD_IN exists; there it leaves a file named by its process.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

_replace = os.replace


def replace(source, target, **options) -> None:
    _replace(source, target, **options)
    counter, place = os.environ.get("HELD_AT"), Path(os.environ.get("HELD_IN", "/none"))
    path = Path(os.fsdecode(target))
    if path.parent.name != "progress" or f'"{counter}"' not in path.read_text(encoding="utf-8"):
        return
    with suppress(FileNotFoundError):
        (place / str(os.getpid())).touch()
    while place.is_dir():
        time.sleep(0.02)


os.replace = replace
