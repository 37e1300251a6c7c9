"""Runs one job as a process of its own and passes its lines on to the flow's log.

A job's memory (a GPU's too) is free when its process ends, its imports cost the flow nothing, and
stopping the flow stops the process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence

from schemas.cli import TRY_AGAIN
from schemas.errors import UnavailableError, UserError

_LAST_LINES = 20
_GRACE_S = 10


class JobError(RuntimeError):
    """A job that failed through no mistake of the user's, with the end of what it said."""


def run_job(module: str, arguments: Sequence[str], log: Callable[[str], None]) -> str:
    """Runs ``python -m module arguments`` to its end.

    Args:
        log: takes each line of the job's standard error.

    Returns:
        The last line of its standard output.

    Raises:
        UserError: the job ended with code 2; carries its line.
        UnavailableError: it ended with code 75; likewise.
        JobError: it ended with another code but 0.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    last: deque[str] = deque(maxlen=_LAST_LINES)
    output: list[str] = []
    reader = threading.Thread(target=lambda: output.extend(process.stdout or ()), daemon=True)
    with process:
        reader.start()
        try:
            for line in process.stderr:
                last.append(line.rstrip())
                log(line.rstrip())
            code = process.wait()
        except BaseException:
            _stop(process)
            raise
        reader.join()
    if code in (2, TRY_AGAIN):
        said = (last or ["the job refused its arguments"])[-1].removeprefix("error: ")
        raise UserError(said) if code == 2 else UnavailableError(said)
    if code != 0:
        raise JobError(f"{module} ended with code {code}; its last lines:\n" + "\n".join(last))
    return output[-1].strip()


def _stop(process: subprocess.Popen[str]) -> None:
    """Ends a job and its workers, who are in its process group."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(_GRACE_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
        return
