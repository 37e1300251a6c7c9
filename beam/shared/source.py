"""A source of raw images and masks: streams its files from a folder, a list or an inventory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from beam.shared.pairing import Candidate, Reject, Skip, classify_file
from beam.shared.staged_listing import read_listing, write_listing
from runtime import listing
from runtime.archive import is_archive
from runtime.inventory import inventory_tables, read_inventory
from runtime.listing import SourceFile
from runtime.storage import absolute, is_remote, join
from schemas.config import SourceConfig
from schemas.pair_list import read_pair_list
from schemas.raw_layout import RawLayout, layout_of


@dataclass(frozen=True)
class RawSource:
    """A source of raw pairs.

    Attributes:
        place: path or URI of a folder, or path of an archive.
        layout: patterns of the images' and masks' paths below it.
        pairs: path or URI of a list of pairs that replaces the layout; empty if there is none.
        inventory: path or URI of a table of files that replaces listing; empty if there is none.
        archives: whether archives below the place are opened.
        listed: Parquet files of an earlier listing, which is then read instead.
    """

    place: str
    layout: RawLayout
    pairs: str = ""
    inventory: str = ""
    archives: bool = False
    listed: tuple[str, ...] = ()

    def parts(self) -> list[str]:
        """Parts of the listing, which workers can read in parallel."""
        if self.listed:
            return list(self.listed)
        return inventory_tables(self.inventory) if self.inventory else [""]

    def files(self, part: str = "") -> Iterator[SourceFile]:
        """Yields the files of a part, or all of them; also those to skip.

        Raises:
            UserError: a folder cannot be listed, or the inventory is invalid.
        """
        if self.listed:
            for place in [part] if part else self.listed:
                yield from read_listing(place)
            return
        found = self._files_of_inventory(part) if self.inventory else listing.walk_all(self.place)
        yield from listing.open_archives(self.place, found) if self.archives else found

    def _files_of_inventory(self, part: str) -> Iterator[SourceFile]:
        for table in [part] if part else self.parts():
            yield from read_inventory(self.inventory, table, self.place)

    def entries(
        self, part: str = "", *, any_png: bool = False, listing_folder: str = ""
    ) -> Iterator[tuple[SourceFile, Candidate | Reject | Skip]]:
        """Yields each file with its class; opens none.

        Args:
            part: one of ``parts``; all of them by default.
            any_png: whether every PNG outside of the layout's folders is an image.
            listing_folder: local folder for a copy of the listing; empty for none.

        Raises:
            UserError: a folder cannot be listed, or the list of pairs or files is invalid.
        """
        if self.pairs:
            yield from self._entries_of_pair_list()
            return
        files = self.files(part)
        for file in write_listing(files, listing_folder) if listing_folder else files:
            yield file, classify_file(file, self.layout, any_png=any_png)

    def _entries_of_pair_list(self) -> Iterator[tuple[SourceFile, Candidate | Reject]]:
        find = self._finder()
        for pair in read_pair_list(self.pairs):
            for path, is_mask in ((pair.image, False), (pair.mask, True)):
                if path is None:
                    continue
                file = find(path)
                if file.error:
                    message = file.error
                    yield file, Reject(pair.id, path, "pair", "missing", message, is_mask=is_mask)
                else:
                    split, group = pair.split, pair.group
                    yield file, Candidate(pair.id, pair.id, is_mask, file, split, group)

    def _finder(self) -> Callable[[str], SourceFile]:
        """Looks up files by path: directly on a file system, else in a listing of all of them."""
        if self.archives or is_remote(self.place) or is_archive(self.place):
            usable = (file for file in self.files() if not file.skipped and not file.error)
            known = {file.path: file for file in usable}
            return lambda path: (
                known.get(path) or SourceFile(path, 0, 0, error="there is no such file")
            )

        def find(path: str) -> SourceFile:
            try:
                status = os.stat(join(self.place, path))
            except OSError as error:
                return SourceFile(path, 0, 0, error=f"cannot be read: {error.strerror}")
            return SourceFile(path, status.st_size, status.st_mtime)

        return find


def source_of(place: str, config: SourceConfig) -> RawSource:
    """The source that a job's configuration names.

    Raises:
        UserError: there is no such layout, or its patterns are invalid.
    """
    pairs, inventory = (path and absolute(path) for path in (config.pairs, config.inventory))
    return RawSource(
        absolute(place), layout_of(config), pairs, inventory, archives=config.archives == "open"
    )
