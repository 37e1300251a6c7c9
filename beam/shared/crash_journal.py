"""Survives files that crash a decoder: each worker notes what it reads, which outlives it.

A crash of native code ends a worker without naming a file. The files that it had in hand are then
read once more, in a process of its own (``python -m beam.shared.crash_journal``); one on which that
crashes too is a reject. On Flink, which starts workers anew, the next worker does this. The local
runner gives up; there the driver does it, and runs the pipeline again without these files.
"""

from __future__ import annotations

import json
import mmap
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from images import masks, png
from runtime.child_processes import end_with_parent, ends_with_this_process
from runtime.command_line import log
from runtime.errors import RejectError, UserError
from runtime.storage import join, read_bytes
from schemas.classes import Taxonomy
from schemas.config import SourceConfig

CRASHED = "crashed"
"""Code of rejects whose decoding ends the process."""

_JOURNALS = "*.journal"
_DEAD_WORKER = re.compile(r"Channel closed prematurely|Worker subprocess exited")
_JOURNAL_BYTES = 1 << 18
_MAX_CRASHING_FILES = 20

PairPaths = tuple[str, str | None]
"""PairPaths of an image and of its mask, below the source."""


@dataclass(frozen=True)
class ReadSettings:
    """What a job reads, and how."""

    source: str
    config: SourceConfig
    taxonomy: Taxonomy


class CrashJournal:
    """A worker's note of the files that it reads, which outlives the process.

    It is a mapped file: to write it costs no system call.
    """

    def __init__(self, folder: str, settings: ReadSettings) -> None:
        self._settings = settings
        self._note: mmap.mmap | None = None
        self._suspects = set(_recorded_pairs(Path(folder)))
        # A worker on another machine may not see the driver's folder.
        with suppress(OSError), open(Path(folder, f"{uuid.uuid4().hex}.journal"), "w+b") as file:
            file.truncate(_JOURNAL_BYTES)
            self._note = mmap.mmap(file.fileno(), _JOURNAL_BYTES)

    @contextmanager
    def recording(self, pairs: Sequence[PairPaths]) -> Iterator[frozenset[str]]:
        """Notes the files that are read during the block, which must not decode those it yields."""
        crashing = _find_crashing([one for one in pairs if one in self._suspects], self._settings)
        if self._note is None:
            yield crashing
            return
        text = json.dumps(pairs).encode()
        if len(text) < _JOURNAL_BYTES:
            self._note[: len(text) + 1] = text + b"\0"
        try:
            yield crashing
        finally:
            self._note[0] = 0


def check_no_crash(path: str, crashed: frozenset[str]) -> None:
    """Refuses a file on which a decoder crashes.

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
    """Runs a pipeline, and again without the files that crash it.

    Args:
        attempt: runs it; takes the paths that it must not decode.
        reset: removes what a broken attempt has left.
        folder: where the workers' notes are.

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
            found = _find_cause(folder, settings, error)
            if not found:
                raise
            crashed |= found
            if len(crashed) > _MAX_CRASHING_FILES:
                raise UserError(
                    f"the decoders crash on more than {_MAX_CRASHING_FILES} files of {settings.source!r}, among "
                    f"them {min(crashed)}; nothing was published: an installed decoder may be "
                    "damaged, or the files are made to harm"
                ) from None
            for path in sorted(found):
                log(f"a worker has crashed on {path}, and so has a second process: left out")
            for counts in folder.glob("*.json"):
                counts.unlink()
            reset()
        else:
            return


def _find_cause(folder: Path, settings: ReadSettings, error: Exception) -> frozenset[str]:
    """The files that have ended a pipeline with an error; none if it has other reasons.

    Raises:
        UserError: a worker was killed, and no file is to blame.
    """
    found = _find_crashing(list(_recorded_pairs(folder)), settings)
    for note in folder.glob(_JOURNALS):
        note.unlink()
    if not found and _DEAD_WORKER.search(str(error)):
        raise UserError(
            "a worker process has ended while it worked, and no file is at fault: it was killed, "
            "e.g. by Linux when memory ran out; nothing was published: free some memory, or name "
            "fewer --direct_num_workers, and run again"
        ) from error
    return found


def _recorded_pairs(folder: Path) -> Iterator[PairPaths]:
    """The files that workers have in hand, or had when they ended."""
    for path in sorted(folder.glob(_JOURNALS)):
        # A worker may be writing its note.
        with suppress(OSError, ValueError), path.open("rb") as note:
            # Most have nothing in hand.
            if note.read(1).strip(b"\0"):
                note.seek(0)
                pairs = json.loads(note.read().partition(b"\0")[0])
                yield from ((image, mask) for image, mask in pairs)


def _find_crashing(pairs: Sequence[PairPaths], settings: ReadSettings) -> frozenset[str]:
    """The paths among these on which a process crashes that reads them one after the other."""
    found = set()
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
            env=ends_with_this_process(),
            check=False,
        )
        begun = done.stdout.splitlines()
        # Only a signal is a crash; an error in the program itself is not the file's fault.
        if done.returncode >= 0 or not begun:
            break
        number, path = json.loads(begun[-1])
        found.add(path)
        pairs = pairs[number + 1 :]
    return frozenset(found)


def _read(settings: ReadSettings, pairs: Iterable[PairPaths]) -> None:
    """Reads files as the jobs do; prints each pair's number and path first."""
    for number, (image_path, mask_path) in enumerate(pairs):
        print(json.dumps((number, image_path)), flush=True)
        with suppress(RejectError, OSError):
            image = png.read_image(read_bytes(join(settings.source, image_path)), settings.config)
            if mask_path is not None:
                data = read_bytes(join(settings.source, mask_path))
                print(json.dumps((number, mask_path)), flush=True)
                masks.read_mask_of(data, image, settings.taxonomy, settings.config)


def main() -> None:
    """Reads the files that standard input names."""
    end_with_parent()
    job = json.load(sys.stdin)
    config = SourceConfig.model_validate(job["config"])
    settings = ReadSettings(job["source"], config, Taxonomy.model_validate(job["taxonomy"]))
    _read(settings, job["pairs"])


if __name__ == "__main__":
    main()
