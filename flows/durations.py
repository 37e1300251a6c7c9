"""How long steps took on this machine, kept beside their outputs for `python -m flows.plan`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from flows.steps import run_job
from schemas.config import IngestConfig, TrainConfig

_FILE = "durations.json"
_NOTHING_TO_DO = "nothing has changed"


def ingest_key(config: IngestConfig) -> str:
    """What makes two ingests comparable, pair by pair."""
    return f"ingest {config.height}x{config.width} {config.resize}"


def train_key(config: TrainConfig, height: int, width: int) -> str:
    """What makes two trainings comparable, image by image."""
    return f"train {config.architecture} {config.filters} filters {height}x{width}"


def timed_job(
    module: str,
    arguments: Sequence[str],
    log: Callable[[str], None],
    output: str,
    measure: Callable[[str], tuple[str, int]],
) -> str:
    """As ``run_job``; notes how long it took, unless there was nothing to do.

    Args:
        output: root of all outputs, where the note is kept.
        measure: from the job's result to its key and how many items it worked on.
    """
    idle = False

    def watch(line: str) -> None:
        nonlocal idle
        idle |= _NOTHING_TO_DO in line
        log(line)

    started = time.monotonic()
    result = run_job(module, arguments, watch)
    if not idle:
        key, items = measure(result)
        record(output, key, items, time.monotonic() - started)
    return result


def record(output: str, key: str, items: int, seconds: float) -> None:
    """Notes the last duration of its kind."""
    known = recorded(output) | {key: {"items": items, "seconds": round(seconds, 1)}}
    file = Path(output) / _FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    new.replace(file)


def recorded(output: str) -> dict[str, dict[str, float]]:
    """All notes by key; none where the file is missing or damaged."""
    try:
        found = json.loads((Path(output) / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
