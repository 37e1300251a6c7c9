"""Runs one job in its own process and passes its lines on to the flow's log.

The job's memory, including that of a GPU, is freed when its process ends, and its imports cost the
flow nothing. The process ends if the flow is stopped, and also if the flow is killed.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from flows.state import end_group
from schemas.cli import TRY_AGAIN
from schemas.errors import UnavailableError, UserError
from schemas.lifeline import tied_to_me

_NOTHING_TO_DO = "nothing has changed"
"""What a job prints if it finds its output published and intact."""

_LAST_LINES = 20
_GRACE_S = 10


class Done(NamedTuple):
    """Outcome of a job that succeeded.

    Attributes:
        result: the last line of its standard output.
        idle: whether it found its output published and intact.
    """

    result: str
    idle: bool


class JobError(RuntimeError):
    """A job failed, and not because of a user's mistake; carries the last lines that it printed."""


def run_job(module: str, arguments: Sequence[str], log: Callable[[str], None]) -> Done:
    """Runs ``python -m module arguments`` to its end.

    Args:
        log: is called with each line of the job's standard error.

    Raises:
        UserError: the job ended with code 2; carries its last line.
        UnavailableError: the job ended with code 75; carries its last line.
        JobError: the job ended with any other code except 0.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**tied_to_me(), "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    last: deque[str] = deque(maxlen=_LAST_LINES)
    output: list[str] = []
    idle = False
    reader = threading.Thread(target=lambda: output.extend(process.stdout or ()), daemon=True)
    with process:
        reader.start()
        try:
            for line in process.stderr:
                last.append(line.rstrip())
                idle |= _NOTHING_TO_DO in line
                log(line.rstrip())
            code = process.wait()
        except BaseException:
            # Its workers are in its process group.
            end_group(process.pid, _GRACE_S)
            raise
        reader.join()
    if code in (2, TRY_AGAIN):
        said = (last or ["the job refused its arguments"])[-1].removeprefix("error: ")
        raise UserError(said) if code == 2 else UnavailableError(said)
    if code != 0:
        raise JobError(f"{module} ended with code {code}; its last lines:\n" + "\n".join(last))
    return Done(output[-1].strip(), idle)
