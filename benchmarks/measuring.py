"""Runs a command to its end; measures wall time, CPU time and peak memory."""

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent


class Measurement(NamedTuple):
    """Wall and CPU seconds of all processes, and peak MiB of the largest one."""

    seconds: float
    cpu: float
    peak_mib: float


def measure(command: Sequence[str], log: Path) -> Measurement:
    """Measures one run of a command, whose output goes to ``log``."""
    path = f"{HERE}{os.pathsep}{HERE.parent}"
    with log.open("w") as file:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=HERE.parent,
            stdout=file,
            stderr=file,
            env={**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")
    return Measurement(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
