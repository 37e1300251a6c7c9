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
from runtime.child_processes import child_environment, end_with_parent
from runtime.command_line import log
from runtime.errors import RejectError, UserError
from runtime.storage import join, read_bytes
from schemas.classes import Taxonomy
from schemas.config import SourceConfig

CRASHED = "crashed"
"""Code of rejects whose decoding ends the process."""

_NOTES = "*.hand"
_DEAD_WORKER = re.compile(r"Channel closed prematurely|Worker subprocess exited")
_NOTE_BYTES = 1 << 18
_MOST = 20

Paths = tuple[str, str | None]
"""Paths of an image and of its mask, below the source."""


@dataclass(frozen=True)
class Reading:
    """What a job reads, and how."""

    source: str
    config: SourceConfig
    taxonomy: Taxonomy


class CrashJournal:
    """A worker's note of the files that it reads, which outlives the process.

    It is a mapped file: to write it costs no system call.
    """

    def __init__(self, folder: str, reading: Reading) -> None:
        self._reading = reading
        self._note: mmap.mmap | None = None
        self._suspects = set(_noted(Path(folder)))
        # A worker on another machine may not see the driver's folder.
        with suppress(OSError), open(Path(folder, f"{uuid.uuid4().hex}.hand"), "w+b") as file:
            file.truncate(_NOTE_BYTES)
            self._note = mmap.mmap(file.fileno(), _NOTE_BYTES)

    @contextmanager
    def holding(self, pairs: Sequence[Paths]) -> Iterator[frozenset[str]]:
        """Notes the files that are read during the block, which must not decode those it yields."""
        crashing = _crashing([one for one in pairs if one in self._suspects], self._reading)
        if self._note is None:
            yield crashing
            return
        text = json.dumps(pairs).encode()
        if len(text) < _NOTE_BYTES:
            self._note[: len(text) + 1] = text + b"\0"
        try:
            yield crashing
        finally:
            self._note[0] = 0


def check_crash(path: str, crashed: frozenset[str]) -> None:
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
    reading: Reading,
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
            found = _at_fault(folder, reading, error)
            if not found:
                raise
            crashed |= found
            if len(crashed) > _MOST:
                raise UserError(
                    f"the decoders crash on more than {_MOST} files of {reading.source!r}, among "
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


def _at_fault(folder: Path, reading: Reading, error: Exception) -> frozenset[str]:
    """The files that have ended a pipeline with an error; none if it has other reasons.

    Raises:
        UserError: a worker was killed, and no file is to blame.
    """
    found = _crashing(list(_noted(folder)), reading)
    for note in folder.glob(_NOTES):
        note.unlink()
    if not found and _DEAD_WORKER.search(str(error)):
        raise UserError(
            "a worker process has ended while it worked, and no file is at fault: it was killed, "
            "e.g. by Linux when memory ran out; nothing was published: free some memory, or name "
            "fewer --direct_num_workers, and run again"
        ) from error
    return found


def _noted(folder: Path) -> Iterator[Paths]:
    """The files that workers have in hand, or had when they ended."""
    for path in sorted(folder.glob(_NOTES)):
        # A worker may be writing its note.
        with suppress(OSError, ValueError), path.open("rb") as note:
            # Most have nothing in hand.
            if note.read(1).strip(b"\0"):
                note.seek(0)
                pairs = json.loads(note.read().partition(b"\0")[0])
                yield from ((image, mask) for image, mask in pairs)


def _crashing(pairs: Sequence[Paths], reading: Reading) -> frozenset[str]:
    """The paths among these on which a process crashes that reads them one after the other."""
    found = set()
    while pairs:
        names = set(SourceConfig.model_fields)
        job = {
            "source": reading.source,
            "config": reading.config.model_dump(mode="json", include=names),
            "taxonomy": reading.taxonomy.model_dump(mode="json"),
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
        begun = done.stdout.splitlines()
        # Only a signal is a crash; an error in the program itself is not the file's fault.
        if done.returncode >= 0 or not begun:
            break
        number, path = json.loads(begun[-1])
        found.add(path)
        pairs = pairs[number + 1 :]
    return frozenset(found)


def _read(reading: Reading, pairs: Iterable[Paths]) -> None:
    """Reads files as the jobs do; prints each pair's number and path first."""
    for number, (image_path, mask_path) in enumerate(pairs):
        print(json.dumps((number, image_path)), flush=True)
        with suppress(RejectError, OSError):
            image = png.read_image(read_bytes(join(reading.source, image_path)), reading.config)
            if mask_path is not None:
                data = read_bytes(join(reading.source, mask_path))
                print(json.dumps((number, mask_path)), flush=True)
                masks.read_mask_for(data, image, reading.taxonomy, reading.config)


def main() -> None:
    """Reads the files that standard input names."""
    end_with_parent()
    job = json.load(sys.stdin)
    config = SourceConfig.model_validate(job["config"])
    reading = Reading(job["source"], config, Taxonomy.model_validate(job["taxonomy"]))
    _read(reading, job["pairs"])


if __name__ == "__main__":
    main()
