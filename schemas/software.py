"""Versions of the software that decides what is published: our formats, and the libraries.

They identify what is published, beside input and parameters, so that output of older software is
never taken for that of the present one.
"""

from __future__ import annotations

import zlib
from importlib.metadata import version

from runtime.errors import UserError

IMAGES = 2
"""Raise it when the same file or size gives other pixels or class ids than before."""

RECORDS = 2
"""Raise it when the same pixels give another record, split or reject than before."""

ROWS = 2
"""Raise it when the same pixels and network give other rows of a table than before."""

_DECODERS = ("kornia-rs", "numpy", "pillow")
_ENGINES = {"openvino": ("openvino",), "tensorflow": ("keras", "tensorflow")}


def of_records() -> str:
    """The software here that makes a dataset's records: ``images 2, records 2, numpy 2.4.1, …``."""
    return f"images {IMAGES}, records {RECORDS}, {_versions(*_DECODERS)}"


def of_rows(engine: str) -> str:
    """The software here that makes rows of predictions, with engine openvino or tensorflow."""
    return f"images {IMAGES}, rows {ROWS}, {_versions(*_DECODERS, *_ENGINES[engine])}"


def check(started_with: str, here: str) -> None:
    """Checks in a worker that it has the software of the process that started the job.

    Raises:
        UserError: it has not; the message names what differs.
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
    # zlib decides the bytes of a PNG, not its pixels.
    found["zlib"] = zlib.ZLIB_RUNTIME_VERSION
    return ", ".join(f"{name} {found[name]}" for name in sorted(found))
