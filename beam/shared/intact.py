"""Which published files are still what a job published."""

from __future__ import annotations

from collections.abc import Mapping

from runtime import storage
from runtime.storage import is_remote

_RESOLUTION_S = 1.0
"""Stores tell the time of a put in whole seconds."""


def intact_files(files: Mapping[str, str], last: str) -> set[str]:
    """Those of the files whose content is the published one.

    On this machine, each file is hashed. A store would have to send all of them for that; there, an
    object can only be replaced by a later put, so what was put before ``last`` is intact, and only
    files of the same second or later are hashed. ``python -m beam.verify`` hashes all.

    Args:
        files: SHA-256 by place.
        last: place of the file that was published after all of them.

    Raises:
        OSError: ``last`` does not exist.
    """
    trusted = _older(files, storage.modified(last)) if is_remote(last) else set()
    rest = [place for place in files if place not in trusted]
    matching = storage.each(lambda place: has_digest(place, files[place]), rest)
    return trusted | {place for place, fine in zip(rest, matching, strict=True) if fine}


def has_digest(place: str, sha256: str) -> bool:
    """Whether a file exists and has this SHA-256."""
    try:
        return storage.file_sha256(place) == sha256
    except FileNotFoundError:
        return False


def _older(files: Mapping[str, str], published: float) -> set[str]:
    def is_older(place: str) -> bool:
        try:
            return storage.modified(place) + _RESOLUTION_S < published
        except FileNotFoundError:
            return False

    older = storage.each(is_older, files)
    return {place for place, fine in zip(files, older, strict=True) if fine}
