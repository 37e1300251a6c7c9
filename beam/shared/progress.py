"""Progress of a running job: counters of the workers, printed by the driver.

Each counter is a Beam metric, so the web pages of Flink and Dataflow show it. Workers on this
machine also write their counts to files, which the driver adds up and prints.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apache_beam as beam
from apache_beam.metrics import Metrics

from runtime.background import repeating

_INTERVAL_S = 1.0

_DONE = ("read", "kept", "predicted")
_REJECTED = "rejected."


class Counters:
    """A worker's counts, written at most once a second to a file of its own."""

    def __init__(self, job: str, folder: str) -> None:
        self._job = job
        self._path = os.path.join(folder, f"{uuid.uuid4().hex}.json")
        self._counts: Counter[str] = Counter()
        self._written = 0.0

    def add(self, name: str, amount: int = 1) -> None:
        """Adds ``amount`` to the counter ``name``, e.g. ``written`` or ``rejected.truncated``."""
        Metrics.counter(self._job, name).inc(amount)
        self._counts[name] += amount
        if time.monotonic() - self._written > _INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Writes the counts; a failure to write affects the displayed progress alone."""
        self._written = time.monotonic()
        try:
            with open(f"{self._path}.part", "w", encoding="utf-8") as file:
                json.dump(self._counts, file)
            os.replace(f"{self._path}.part", self._path)
        except OSError:
            pass


class CountingDoFn(beam.DoFn):
    """Base class of steps that count what they process, in ``self.counters``."""

    def __init__(self, job: str, folder: str) -> None:
        self._counters_job = job
        self._counters_folder = folder

    def setup(self) -> None:
        """Called by Beam once for each worker, before its first bundle."""
        self.counters = Counters(self._counters_job, self._counters_folder)

    def finish_bundle(self) -> None:
        """Called by Beam after each bundle."""
        self.counters.flush()


@contextmanager
def show_progress(job: str, folder: Path, total: int, unit: str) -> Iterator[None]:
    """Prints the sum of all workers' counters to standard error while the block runs.

    Args:
        total: number of inputs; unit: their name, e.g. ``pairs``.
    """
    folder.mkdir()
    started = time.monotonic()
    last = ""

    def report() -> None:
        nonlocal last
        line = progress_line(_sum_counts(folder), total, unit)
        if line != last:
            elapsed = time.monotonic() - started
            print(f"{job}: {elapsed:5.1f} s  {line}", file=sys.stderr, flush=True)
        last = line

    try:
        with repeating(report, 2 * _INTERVAL_S):
            yield
    finally:
        # The last line is printed in any case.
        last = ""
        report()


def progress_line(counts: Counter[str], total: int, unit: str) -> str:
    """The share of inputs that are done, then each counter that is not zero, in one line."""
    if not counts:
        return "starting workers"
    rejected = sorted(name for name in counts if name.startswith(_REJECTED))
    done = sum(counts[name] for name in (*_DONE, *rejected))
    parts = [f"{min(done, total):,} of {total:,} {unit} done ({min(done / total, 1):.0%})"]
    parts += [f"{counts[name]:,} {name}" for name in ("paired", *_DONE, "left out") if counts[name]]
    if counts["written"]:
        parts.append(f"{counts['written']:,} written")
    if counts["bytes"]:
        parts.append(f"{counts['bytes'] / 2**20:.1f} MiB")
    parts += [f"{counts[name]:,} rejected as {name.removeprefix(_REJECTED)}" for name in rejected]
    return ", ".join(parts)


def _sum_counts(folder: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    for path in folder.glob("*.json"):
        counts.update(json.loads(path.read_text(encoding="utf-8")))
    return counts
