"""A source of raw pairs: what lies below it, or what a list of pairs names, one file at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from beam.pairing import Candidate, Reject, Skip, candidate
from schemas import listing
from schemas.archive import is_archive
from schemas.config import SourceConfig
from schemas.listing import SourceFile
from schemas.pair_list import read_pair_list
from schemas.raw_layout import RawLayout, layout_of
from schemas.storage import absolute, is_remote, join


@dataclass(frozen=True)
class RawSource:
    """A source of raw pairs.

    Attributes:
        place: path or URI of a folder, or path of an archive.
        layout: where images and masks lie below it.
        pairs: path or URI of a list that names them instead; empty if there is none.
    """

    place: str
    layout: RawLayout
    pairs: str = ""

    def entries(
        self, *, loose: bool = False
    ) -> Iterator[tuple[SourceFile, Candidate | Reject | Skip]]:
        """Yields each file with what it is; it opens none.

        Args:
            loose: treats every PNG outside of the layout's places as an image.

        Raises:
            UserError: a folder cannot be listed, or the list of pairs is invalid.
        """
        if self.pairs:
            yield from self._listed()
            return
        for file in listing.walk_all(self.place):
            yield file, candidate(file, self.layout, loose=loose)

    def _listed(self) -> Iterator[tuple[SourceFile, Candidate | Reject | Skip]]:
        find = _finder(self.place)
        for pair in read_pair_list(self.pairs):
            for path, is_mask in ((pair.image, False), (pair.mask, True)):
                if path is None:
                    continue
                file = find(path)
                found: Candidate | Reject
                if file.error:
                    found = Reject(pair.id, path, "pair", "missing", file.error, is_mask=is_mask)
                else:
                    found = Candidate(pair.id, pair.id, is_mask, file, pair.split, pair.group)
                yield file, found


def source_of(place: str, config: SourceConfig) -> RawSource:
    """The source that a job's parameters name.

    Raises:
        UserError: there is no such layout, or its patterns are invalid.
    """
    pairs = absolute(config.pairs) if config.pairs else ""
    return RawSource(absolute(place), layout_of(config), pairs)


def _finder(place: str) -> Callable[[str], SourceFile]:
    """Finds a file by its path: at once on a file system, elsewhere in a listing of everything."""
    if is_remote(place) or is_archive(place):
        known = {file.path: file for file in listing.walk(place)}
        return lambda path: known.get(path) or SourceFile(path, 0, 0, error="there is no such file")

    def find(path: str) -> SourceFile:
        try:
            status = os.stat(join(place, path))
        except OSError as error:
            return SourceFile(path, 0, 0, error=f"cannot be read: {error.strerror}")
        return SourceFile(path, status.st_size, status.st_mtime)

    return find
