"""Worker processes of the local runner: forks of one process, which imports Beam while we do.

Started as a command each, as Beam starts them, workers would import Beam one after the other, after
the job itself has done so. And nobody would notice that one has been killed: the job would wait for
it for ever.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

from runtime.child_processes import child_environment

WORKER_DIED = "a worker process has ended"
"""Message of the RuntimeError that ends a pipeline whose worker has failed or was killed."""

_REPEAT_S = 0.2


class WorkerParent:
    """The process ``python -m beam.runners.worker``, from which workers are forked.

    It ends, and all its workers with it, as soon as one of them has failed or was killed.

    Attributes:
        pid: its process id.
    """

    def __init__(self, modules: tuple[str, ...]) -> None:
        command = [sys.executable, "-m", "beam.runners.worker", *modules]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            text=True,
            env=child_environment(),
            # Ctrl-C is for the job alone, which then ends the workers.
            process_group=0,
        )
        self._on_death: list[Callable[[], None]] = []
        self._closed = threading.Event()
        self.pid = self._process.pid
        threading.Thread(target=self._watch, daemon=True).start()

    def fork(self, variables: dict[str, str], on_death: Callable[[], None]) -> None:
        """Starts a worker in this process's folder, with its environment and these variables.

        Args:
            on_death: called in another thread, again and again, after workers have died.
        """
        self._on_death.append(on_death)
        request = {"folder": os.getcwd(), "environment": {**os.environ, **variables}}
        assert self._process.stdin
        # A parent that has ended is noticed by its watcher.
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self._process.stdin, flush=True)

    def close(self, *, kill: bool) -> None:
        """Waits until the workers have ended: by themselves when their runner has, or killed."""
        self._closed.set()
        if kill:
            self._process.terminate()
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _watch(self) -> None:
        self._process.wait()
        # What a worker is asked for afterwards must be answered, too.
        while not self._closed.wait(_REPEAT_S):
            for report in self._on_death:
                report()


_prepared: list[WorkerParent] = []


def prepare(*modules: str) -> None:
    """Starts the parent of the next pipeline's workers, which imports Beam and these modules."""
    _prepared.append(WorkerParent(modules))


@contextlib.contextmanager
def worker_parent() -> Iterator[WorkerParent]:
    """The parent of a pipeline's workers: the prepared one, or a new one."""
    parent = _prepared.pop() if _prepared else WorkerParent(())
    try:
        yield parent
    except BaseException:
        # Some may not even be connected yet, and would wait for a runner that is gone.
        parent.close(kill=True)
        raise
    parent.close(kill=False)
