"""Records durations of steps, beside their outputs, for the estimates of `python -m flows.plan`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from flows.lifecycle.job_process import JobCallbacks, run_job
from runtime.atomic_files import replacing
from runtime.storage import local_root
from schemas.config import IngestConfig, TrainConfig

_FILE = "durations.json"


def ingest_key(config: IngestConfig) -> str:
    """Key shared by ingests that take about the same time per pair."""
    return f"ingest {config.height}x{config.width} {config.resize}"


def train_key(config: TrainConfig, height: int, width: int) -> str:
    """Key shared by trainings that take about the same time per image."""
    return f"train {config.architecture} {config.filters} filters {height}x{width}"


def run_timed_job(
    module: str,
    arguments: Sequence[str],
    callbacks: JobCallbacks,
    output: str,
    measure: Callable[[str], tuple[str, int]],
) -> str:
    """Runs a job and returns its output; records its duration unless there was nothing to do.

    Args:
        output: root of all outputs, where the duration is recorded.
        measure: maps the job's output to its key and the number of items that it processed.
    """
    started = time.monotonic()
    result = run_job(module, arguments, callbacks)
    if not result.up_to_date:
        key, items = measure(result.output)
        record_duration(output, key, items, time.monotonic() - started)
    return result.output


def record_duration(output: str, key: str, items: int, seconds: float) -> None:
    """Records a duration atomically, in place of the last one with the same key."""
    known = recorded_durations(output) | {key: {"items": items, "seconds": round(seconds, 1)}}
    file = Path(local_root(output)) / _FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as new:
        new.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def recorded_durations(output: str) -> dict[str, dict[str, float]]:
    """All recorded durations by key; empty if the file is missing or damaged."""
    try:
        content = json.loads((Path(local_root(output)) / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
