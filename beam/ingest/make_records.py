"""MakeRecords and Deduplicate: steps that turn pairs into records, and leave out copies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from beam.ingest.record_files import RecordFiles
from beam.ingest.records import (
    DUPLICATE,
    ProcessedPair,
    Recipe,
    blame_file,
    deduplicate,
    process_pair,
    read_pair,
    reuse_if_unchanged,
    row_of,
)
from beam.shared.crash_journal import CrashJournal, ReadSettings, check_no_crash
from beam.shared.pairing import Pair
from beam.shared.prefetch import prefetch
from beam.shared.progress import CountingDoFn
from schemas import software
from schemas.sources import SourceRow


class MakeRecords(CountingDoFn):
    """Reads, checks and encodes pairs, or reuses the records of an earlier version.

    Yields pairs keyed by the hashes of their bytes, so that duplicates meet.

    Args:
        folder: where records wait for their shard.
        progress: folder of the workers' counters and crash journals.
        crashed: paths on which a decoder crashes.
    """

    def __init__(self, recipe: Recipe, folder: str, progress: str, crashed: frozenset[str]) -> None:
        super().__init__("ingest", progress)
        self._recipe = recipe
        self._folder = folder
        self._journals = progress
        self._crashed = crashed

    def setup(self) -> None:
        """Called by Beam once for each worker, before its first bundle."""
        super().setup()
        recipe = self._recipe
        self._journal = CrashJournal(
            self._journals, ReadSettings(recipe.source, recipe.config, recipe.taxonomy)
        )
        software.check(recipe.made_with, software.of_records())

    def start_bundle(self) -> None:
        """Called by Beam before each bundle."""
        self._files = RecordFiles(self._folder)

    def process(
        self, element: list[tuple[Pair, ProcessedPair | None]]
    ) -> Iterator[tuple[str, ProcessedPair]]:
        """Takes pairs that are read together, each with its result in an earlier version."""
        rows = [row_of(pair, self._recipe.config) for pair, _ in element]
        reused = [
            previous and reuse_if_unchanged(row, previous)
            for row, (_, previous) in zip(rows, element, strict=True)
        ]
        new = [row for row, pair in zip(rows, reused, strict=True) if pair is None]
        with self._journal.recording([(row.image_path, row.mask_path) for row in new]) as crashing:
            read_files = partial(self._read, crashed=self._crashed | crashing)
            processed = [
                process_pair(row, self._recipe, read, self._files)
                for row, read in prefetch(read_files, new, self._recipe.source)
            ]
        for previous in reused:
            pair = previous or processed.pop(0)
            row = pair.row
            if pair.record is None:
                self.counters.add(f"rejected.{row.reject_code}")
            else:
                self.counters.add("kept" if previous else "read")
            yield f"{row.image_sha256}{row.mask_sha256}" if row.image_sha256 else row.id, pair

    def _read(self, row: SourceRow, crashed: frozenset[str]) -> tuple[bytes, bytes]:
        for path in (row.image_path, row.mask_path):
            with blame_file(path):
                check_no_crash(path, crashed)
        return read_pair(row, self._recipe.source, self._recipe.config)

    def finish_bundle(self) -> None:
        """Called by Beam after each bundle; writes the remaining records."""
        self._files.close()
        super().finish_bundle()


class Deduplicate(CountingDoFn):
    """Keeps one of the pairs that have the same bytes and rejects the others."""

    def __init__(self, progress: str) -> None:
        super().__init__("ingest", progress)

    def process(self, element: tuple[str, Iterable[ProcessedPair]]) -> Iterator[ProcessedPair]:
        """Takes the pairs with the same hashes."""
        for pair in deduplicate(element[1]):
            if pair.row.reject_code == DUPLICATE:
                self.counters.add("left out")
            yield pair
