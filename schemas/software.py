"""The code that decides what is published: formats of our own, and versions of libraries.

What is published is identified by it, beside input and parameters, so that nothing made before a
change of the code passes for what the code makes now.
"""

from __future__ import annotations

import zlib
from importlib.metadata import version

from runtime.errors import UserError

IMAGES = 1
"""Raise it with a change after which the same file or size gives other pixels or class ids."""

RECORDS = 1
"""Raise it with a change after which the same pixels give another record, split or reject."""

ROWS = 2
"""Raise it with a change after which the same pixels and network give other rows of a table."""

_READING = ("kornia-rs", "numpy", "pillow")
_ENGINES = {"openvino": ("openvino",), "tensorflow": ("keras", "tensorflow")}


def of_records() -> str:
    """What makes a dataset's records here, e.g. ``images 1, records 1, numpy 2.4.1, …``."""
    return f"images {IMAGES}, records {RECORDS}, {_versions(*_READING)}"


def of_rows(engine: str) -> str:
    """What makes the rows of predictions here, with the engine ``openvino`` or ``tensorflow``."""
    return f"images {IMAGES}, rows {ROWS}, {_versions(*_READING, *_ENGINES[engine])}"


def check(started_with: str, here: str) -> None:
    """Refuses to work on a job that was started with other software than there is here.

    Raises:
        UserError: names what differs.
    """
    if started_with == here:
        return
    theirs, ours = (set(one.split(", ")) for one in (started_with, here))
    raise UserError(
        "a worker has other software than the process that started the job: "
        f"{', '.join(sorted(ours - theirs))}; expected {', '.join(sorted(theirs - ours))}; "
        "install the same versions everywhere"
    )


def _versions(*packages: str) -> str:
    found = {name: version(name) for name in packages}
    # It decides how well a PNG is compressed, not what it shows.
    found["zlib"] = zlib.ZLIB_RUNTIME_VERSION
    return ", ".join(f"{name} {found[name]}" for name in sorted(found))
