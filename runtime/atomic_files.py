"""Local files that are replaced whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Yields a hidden path beside ``path`` to write to; the file is at ``path`` after the block.

    Readers see the file that was there before, or the whole new one. If the block fails, the former
    stays.

    Args:
        sync: whether to flush the content to the disk first (fsync), lest a power cut soon after
            leaves an empty file.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
        if sync:
            with part.open("rb") as file:
                os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
