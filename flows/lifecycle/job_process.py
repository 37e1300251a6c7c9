"""Runs a job as a subprocess and passes its log lines on to the flow.

The job's memory, including that of a GPU, is freed when its process ends, and its imports cost the
flow nothing. The process ends if the flow is stopped or killed.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, Queue
from typing import NamedTuple

from runtime.child_processes import child_environment
from runtime.command_line import EX_TEMPFAIL, UP_TO_DATE
from runtime.errors import UnavailableError, UserError
from runtime.services import stop_process_group

_LAST_LINES = 20
_GRACE_S = 10
_CHECK_S = 1


class JobResult(NamedTuple):
    """Result of a job that succeeded.

    Attributes:
        output: the last line of its standard output.
        up_to_date: whether it found its output published and intact.
    """

    output: str
    up_to_date: bool


class JobError(RuntimeError):
    """A job failed, and not because of a user's mistake; carries the last lines that it printed."""


class JobCallbacks(NamedTuple):
    """Functions that are called while a job runs, in the thread that runs it.

    Attributes:
        log: with each line of the job's standard error.
        check: at least once a second; the job is ended if this raises an exception.
    """

    log: Callable[[str], None]
    check: Callable[[], None] = lambda: None


def run_job(module: str, arguments: Sequence[str], callbacks: JobCallbacks) -> JobResult:
    """Runs ``python -m module arguments`` to its end.

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
        env={**child_environment(), "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    last: deque[str] = deque(maxlen=_LAST_LINES)
    output: list[str] = []
    up_to_date = False
    lines: Queue[str | None] = Queue()
    readers = [
        threading.Thread(target=read, daemon=True)
        for read in (lambda: output.extend(process.stdout or ()), lambda: _enqueue(process, lines))
    ]
    with process:
        try:
            for reader in readers:
                reader.start()
            # Prefect interrupts a thread other than the main one only between two bytecodes,
            # not in a blocking read; so nothing here blocks for longer than a second.
            while (line := _next_line(lines, callbacks.check)) is not None:
                last.append(line)
                up_to_date |= UP_TO_DATE in line
                callbacks.log(line)
            code = process.wait()
        except BaseException:
            # The job's workers are in its process group.
            stop_process_group(process.pid, _GRACE_S)
            raise
        for reader in readers:
            reader.join()
    if code in (2, EX_TEMPFAIL):
        message = (last or ["the job refused its arguments"])[-1].removeprefix("error: ")
        raise UserError(message) if code == 2 else UnavailableError(message)
    if code != 0:
        line = last[-1].strip() if last else "nothing"
        details = "\n".join(last)
        raise JobError(f"{module} {_describe_exit(code)}; it said last: {line}\n{details}")
    return JobResult(output[-1].strip(), up_to_date)


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    hint = " (as when memory runs out)" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{hint}"


def _enqueue(process: subprocess.Popen[str], lines: Queue[str | None]) -> None:
    for line in process.stderr or ():
        lines.put(line.rstrip())
    lines.put(None)


def _next_line(lines: Queue[str | None], check: Callable[[], None]) -> str | None:
    """The next line; None at the end. Calls ``check`` before, and every second of the wait."""
    while True:
        check()
        with suppress(Empty):
            return lines.get(timeout=_CHECK_S)
