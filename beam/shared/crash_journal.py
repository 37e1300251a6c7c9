"""Crash journal: finds the files on which a native decoder ends the worker process.

Such a crash names no file. So each worker records the files that it is about to read, in a journal
that outlives it. A separate process (``python -m beam.shared.crash_journal``) then reads the files
of a dead worker's journal once more. A file on which that process crashes too is a reject.

Flink replaces a dead worker; the new worker reads the journal. The local runner gives up, so there
the driver reads it, and runs the pipeline again without the crashing files.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from beam.runners.local_workers import WORKER_DIED
from images import masks, png
from runtime.child_processes import child_environment, end_with_parent
from runtime.command_line import log
from runtime.errors import RejectError, UserError
from runtime.storage import join, read_bytes
from schemas.classes import Taxonomy
from schemas.config import SourceConfig

CRASHED = "crashed"
"""Code of rejects whose decoding ends the process."""

_JOURNALS = "*.journal"
_DEAD_WORKER = re.compile(rf"Channel closed prematurely|{WORKER_DIED}")
_JOURNAL_BYTES = 1 << 18
_MAX_CRASHING_FILES = 20

PairPaths = tuple[str, str | None]
"""Paths of an image and of its mask, if it has one, below the source."""


@dataclass(frozen=True)
class ReadSettings:
    """Where a job reads images and masks, and how it decodes them."""

    source: str
    config: SourceConfig
    taxonomy: Taxonomy


class CrashJournal:
    """A worker's record of the files that it is reading, in a memory-mapped file.

    The file outlives the process, and writing to it needs no system call.
    """

    def __init__(self, folder: str, settings: ReadSettings) -> None:
        self._settings = settings
        self._journal: mmap.mmap | None = None
        self._suspects = set(_recorded_pairs(Path(folder)))
        # A worker on another machine may not see the driver's folder. And on a full disk, a mapped
        # file without room of its own would end the process at the first write.
        with suppress(OSError), open(Path(folder, f"{uuid.uuid4().hex}.journal"), "w+b") as file:
            os.posix_fallocate(file.fileno(), 0, _JOURNAL_BYTES)
            self._journal = mmap.mmap(file.fileno(), _JOURNAL_BYTES)

    @contextmanager
    def recording(self, pairs: Sequence[PairPaths]) -> Iterator[frozenset[str]]:
        """Records the files that are read during the block; yields those it must not decode."""
        crashing = _find_crashing(
            [pair for pair in pairs if pair in self._suspects], self._settings
        )
        if self._journal is None:
            yield crashing
            return
        text = json.dumps(pairs).encode()
        if len(text) < _JOURNAL_BYTES:
            self._journal[: len(text) + 1] = text + b"\0"
        try:
            yield crashing
        finally:
            self._journal[0] = 0


def check_no_crash(path: str, crashed: frozenset[str]) -> None:
    """Rejects a file on which a decoder crashes.

    Raises:
        RejectError: crashed.
    """
    if path in crashed:
        raise RejectError(CRASHED, "reading it has ended two processes: a decoder crashes on it")


def run_without_crashing_files(
    attempt: Callable[[frozenset[str]], None],
    reset: Callable[[], None],
    folder: Path,
    settings: ReadSettings,
) -> None:
    """Runs a pipeline; runs it again without the crashing files until there are no new ones.

    Args:
        attempt: runs the pipeline; takes the paths that it must not decode.
        reset: removes the output of a failed attempt.
        folder: folder of the workers' journals and progress counters.

    Raises:
        UserError: too many files crash the decoders, or a worker was killed.
    """
    crashed: frozenset[str] = frozenset()
    while True:
        try:
            attempt(crashed)
        except UserError:
            raise
        except Exception as error:
            crashing = _find_cause(folder, settings, error)
            if not crashing:
                raise
            crashed |= crashing
            if len(crashed) > _MAX_CRASHING_FILES:
                raise UserError(
                    f"the decoders crash on more than {_MAX_CRASHING_FILES} files of "
                    f"{settings.source!r}, among them {min(crashed)}; nothing was published: an "
                    "installed decoder may be damaged, or the files are made to harm"
                ) from None
            for path in sorted(crashing):
                log(f"a worker has crashed on {path}, and so has a second process: left out")
            for counts in folder.glob("*.json"):
                counts.unlink()
            reset()
        else:
            return


def _find_cause(folder: Path, settings: ReadSettings, error: Exception) -> frozenset[str]:
    """The files whose crash has caused a pipeline's error; none if it has another cause.

    Raises:
        UserError: a worker was killed, and no file crashes a decoder.
    """
    crashing = _find_crashing(list(_recorded_pairs(folder)), settings)
    for journal in folder.glob(_JOURNALS):
        journal.unlink()
    if not crashing and _DEAD_WORKER.search(str(error)):
        raise UserError(
            "a worker process has ended while it worked, and no file is at fault: it was killed, "
            "e.g. by Linux when memory ran out; nothing was published: free some memory, or name "
            "fewer --direct_num_workers, and run again"
        ) from error
    return crashing


def _recorded_pairs(folder: Path) -> Iterator[PairPaths]:
    """The pairs that workers are reading, or were reading when they ended."""
    for path in sorted(folder.glob(_JOURNALS)):
        # A worker may be writing its journal now.
        with suppress(OSError, ValueError), path.open("rb") as journal:
            # Most workers are between two reads: the first byte alone says so.
            if journal.read(1).strip(b"\0"):
                journal.seek(0)
                pairs = json.loads(journal.read().partition(b"\0")[0])
                yield from ((image, mask) for image, mask in pairs)


def _find_crashing(pairs: Sequence[PairPaths], settings: ReadSettings) -> frozenset[str]:
    """Reads pairs in a separate process; returns the paths on which it crashes."""
    crashing = set()
    while pairs:
        names = set(SourceConfig.model_fields)
        job = {
            "source": settings.source,
            "config": settings.config.model_dump(mode="json", include=names),
            "taxonomy": settings.taxonomy.model_dump(mode="json"),
            "pairs": pairs,
        }
        done = subprocess.run(
            [sys.executable, "-m", "beam.shared.crash_journal"],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            env=child_environment(),
            check=False,
        )
        started = done.stdout.splitlines()
        # Only a signal is a crash; an error in the program itself is not the file's fault.
        if done.returncode >= 0 or not started:
            break
        number, path = json.loads(started[-1])
        crashing.add(path)
        pairs = pairs[number + 1 :]
    return frozenset(crashing)


def _read(settings: ReadSettings, pairs: Iterable[PairPaths]) -> None:
    """Decodes files as the jobs do; prints the pair's number and the path before each."""
    for number, (image_path, mask_path) in enumerate(pairs):
        print(json.dumps((number, image_path)), flush=True)
        with suppress(RejectError, OSError):
            image = png.read_image(read_bytes(join(settings.source, image_path)), settings.config)
            if mask_path is not None:
                data = read_bytes(join(settings.source, mask_path))
                print(json.dumps((number, mask_path)), flush=True)
                masks.read_mask_for(data, image, settings.taxonomy, settings.config)


def main() -> None:
    """Reads the files that standard input names."""
    end_with_parent()
    job = json.load(sys.stdin)
    config = SourceConfig.model_validate(job["config"])
    settings = ReadSettings(job["source"], config, Taxonomy.model_validate(job["taxonomy"]))
    _read(settings, job["pairs"])


if __name__ == "__main__":
    main()
