"""Child processes that end when their parent does, however it ends.

A parent that is killed cannot stop its children, so the kernel does (Linux, prctl(2)).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys

from runtime.errors import UserError

PARENT_VARIABLE = "LYFT_PARENT_PROCESS"
"""Environment variable: process id of the parent that a child must not outlive."""

_PR_SET_PDEATHSIG = 1


def child_environment() -> dict[str, str]:
    """Environment for a child that calls ``end_with_parent``.

    The kernel watches the thread that starts the child, so that thread must wait for the child.
    """
    return {**os.environ, PARENT_VARIABLE: str(os.getpid())}


def run_module(module: str, *arguments: str) -> None:
    """Runs ``python -m module`` as a child, to its end; nothing that it prints is shown.

    Raises:
        UserError: it failed; the message is the last line that it printed to standard error.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=child_environment(),
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"{module} ended with {done.returncode}"]
        raise UserError(lines[-1].removeprefix("error: "))


def end_with_parent() -> None:
    """Has the kernel kill this process when its parent ends; not if ``PARENT_VARIABLE`` is unset.

    The signal is SIGKILL: the process must not finish what it is doing, and everything it
    publishes survives being cut off.
    """
    parent = os.environ.pop(PARENT_VARIABLE, None)
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have ended before the call to prctl.
    if os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGKILL)
