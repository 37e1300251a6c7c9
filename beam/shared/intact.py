"""Integrity check: which published files still have the content hash they were published with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from runtime import storage
from runtime.storage import is_remote

_RESOLUTION_S = 1.0
"""Stores give the time of a put in whole seconds."""


def intact_files(files: Mapping[str, str], last: str) -> set[str]:
    """The files whose content is the published one.

    Local files are all hashed. Hashing a store's objects would mean to download them. But only a
    later put can change an object: what was put before ``last`` is intact, and only objects of the
    same second or later are hashed. ``python -m beam.verify`` hashes everything.

    Args:
        files: expected SHA-256 by path or URI.
        last: the file that was published after all of them.

    Raises:
        OSError: ``last`` does not exist.
    """
    trusted = _put_before(storage.modified(last), files) if is_remote(last) else set()
    rest = [place for place in files if place not in trusted]
    matches = storage.map_concurrently(lambda place: has_digest(place, files[place]), rest)
    return trusted | {place for place, matching in zip(rest, matches, strict=True) if matching}


def has_digest(place: str, sha256: str) -> bool:
    """Whether a file exists and has this SHA-256."""
    try:
        return storage.file_sha256(place) == sha256
    except FileNotFoundError:
        return False


def _put_before(time: float, files: Iterable[str]) -> set[str]:
    def is_older(place: str) -> bool:
        try:
            return storage.modified(place) + _RESOLUTION_S < time
        except FileNotFoundError:
            return False

    older = storage.map_concurrently(is_older, files)
    return {place for place, is_old in zip(files, older, strict=True) if is_old}
