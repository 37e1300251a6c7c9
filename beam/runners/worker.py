"""Parent of the worker processes: imports Beam once, and forks each worker that it is asked for."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from typing import Any, cast

from beam.runners.malloc import tune_malloc
from runtime.child_processes import PARENT_VARIABLE, end_with_parent
from runtime.imports import UNUSED_BY_BEAM, import_quickly
from runtime.log_filters import TracebackFilter

_BEAMS_WORKER = "apache_beam.runners.worker.sdk_worker_main"


class _Hidden(MetaPathFinder):
    """Import hook that makes modules look as if they were not installed."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:  # noqa: ARG002
        if fullname in self._names:
            raise ModuleNotFoundError(f"{fullname} is hidden from workers", name=fullname)


def main(modules: Sequence[str]) -> None:
    """Forks a worker for each line of standard input, until it ends; then waits for all of them.

    If a worker fails or is killed, or this process gets SIGTERM, it kills all workers and ends.
    """
    end_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: _kill_all())
    signal.signal(signal.SIGCHLD, lambda *_: _reap(os.WNOHANG))
    prepare()
    for module in (_BEAMS_WORKER, *modules):
        import_quickly(module)
    parent = os.getpid()
    for line in sys.stdin:
        worker = os.fork()
        if worker == 0:
            _become_worker(json.loads(line), parent)
            return
        _workers.add(worker)
    _reap(0)


_workers: set[int] = set()


def _reap(options: int) -> None:
    """Collects the workers that have ended; ``options`` are those of ``waitpid``."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, options))[0]:
            if ended[1]:
                _kill_all()


def _kill_all() -> None:
    """Ends this process after all workers have ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in _workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while os.wait():
            pass
    os._exit(1)


def _become_worker(request: dict[str, Any], parent: int) -> None:
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.environ.clear()
    os.environ |= {**request["environment"], PARENT_VARIABLE: str(parent)}
    end_with_parent()
    os.chdir(request["folder"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    run()


def prepare() -> None:
    """Prepares this process; must be called before Beam is imported."""
    # A worker's log goes to the runner; this handler drops Beam's start-up messages.
    logging.getLogger().addHandler(logging.NullHandler())
    tune_malloc()
    sys.meta_path.insert(0, _Hidden(*UNUSED_BY_BEAM))
    sys.stderr = cast(Any, TracebackFilter(sys.stderr))


def run() -> None:
    """Runs Beam's worker until it ends."""
    import_quickly(_BEAMS_WORKER).main(sys.argv)


if __name__ == "__main__":
    main(sys.argv[1:])
