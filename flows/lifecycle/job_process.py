"""Runs one job in its own process and passes its lines on to the flow's log.

The job's memory, including that of a GPU, is freed when its process ends, and its imports cost the
flow nothing. The process ends if the flow is stopped, and also if the flow is killed.
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
from runtime.command_line import EX_TEMPFAIL
from runtime.errors import UnavailableError, UserError
from runtime.services import stop_process_group

_NOTHING_TO_DO = "nothing has changed"
"""What a job prints if it finds its output published and intact."""

_LAST_LINES = 20
_GRACE_S = 10
_CHECK_S = 1


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


class Watch(NamedTuple):
    """What is called while a job runs, in the thread that runs it.

    Attributes:
        log: with each line of the job's standard error.
        check: at least once a second; the job is ended if this raises an exception.
    """

    log: Callable[[str], None]
    check: Callable[[], None] = lambda: None


def run_job(module: str, arguments: Sequence[str], watch: Watch) -> Done:
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
    idle = False
    lines: Queue[str | None] = Queue()
    readers = [
        threading.Thread(target=read, daemon=True)
        for read in (lambda: output.extend(process.stdout or ()), lambda: _read(process, lines))
    ]
    with process:
        try:
            for reader in readers:
                reader.start()
            # Prefect cannot interrupt a thread other than the main one in a read, only between
            # two steps of Python; so nothing here waits for longer than a second.
            while (line := _next(lines, watch.check)) is not None:
                last.append(line)
                idle |= _NOTHING_TO_DO in line
                watch.log(line)
            code = process.wait()
        except BaseException:
            # Its workers are in its process group.
            stop_process_group(process.pid, _GRACE_S)
            raise
        for reader in readers:
            reader.join()
    if code in (2, EX_TEMPFAIL):
        said = (last or ["the job refused its arguments"])[-1].removeprefix("error: ")
        raise UserError(said) if code == 2 else UnavailableError(said)
    if code != 0:
        said = last[-1].strip() if last else "nothing"
        all_said = "\n".join(last)
        raise JobError(f"{module} {_how(code)}; it said last: {said}\n{all_said}")
    return Done(output[-1].strip(), idle)


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    hint = " (as when memory runs out)" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{hint}"


def _read(process: subprocess.Popen[str], lines: Queue[str | None]) -> None:
    for line in process.stderr or ():
        lines.put(line.rstrip())
    lines.put(None)


def _next(lines: Queue[str | None], check: Callable[[], None]) -> str | None:
    """The next line; None at the end. Calls ``check`` first, and every second that it waits."""
    while True:
        check()
        with suppress(Empty):
            return lines.get(timeout=_CHECK_S)
