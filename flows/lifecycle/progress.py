"""Progress of a job: its lines go to the run's log and to a progress artifact in Prefect."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect import get_client, get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from flows.lifecycle.cancellation import cancellation_check
from flows.lifecycle.job_process import JobCallbacks

_BEAM = re.compile(r" done \((\d+)%\)")
_EPOCH = re.compile(r"epoch (\d+)/(\d+), (?:step (\d+)/(\d+))?")

_UPDATE_S = 5.0
_AFTER_FAILURE_S = 60.0
_POLL_S = 2.0
SERVER_TIMEOUT_S = 900.0
"""Longest wait, after a job has ended, for a Prefect server that does not answer.

Prefect's workers, and with them their runs, end after about 16 minutes without a server.
"""


def percent(line: str) -> float | None:
    """A job's progress in per cent, from one of its lines; None if the line does not show it."""
    if beam := _BEAM.search(line):
        return float(beam[1])
    if training := _EPOCH.search(line):
        epoch, epochs, step, steps = (int(text) if text else None for text in training.groups())
        assert epoch is not None
        assert epochs
        done = epoch - 1 + step / steps if step is not None and steps else epoch
        return 100 * done / epochs
    return None


@contextmanager
def report_progress(job: str) -> Iterator[JobCallbacks]:
    """Yields the callbacks for a job: they log its lines, show its progress and may cancel it.

    On exit, waits until Prefect's server answers: only then can the run report how the job ended.
    """
    logger, progress = get_run_logger(), ProgressArtifact(job)

    def log(line: str) -> None:
        logger.info(line)
        if (done := percent(line)) is not None:
            progress.update(done)

    try:
        with cancellation_check() as check:
            yield JobCallbacks(log, check)
    except Exception:
        wait_for_server(logger.warning)
        raise
    wait_for_server(logger.warning)
    progress.complete()


class ProgressArtifact:
    """A job's progress in Prefect, updated at intervals; a failed update does not stop the job."""

    def __init__(self, job: str) -> None:
        self._job = job
        self._id: UUID | None = None
        self._next_update = 0.0

    def update(self, done: float) -> None:
        """Sends the percentage that is done, unless the last update was only a moment ago."""
        if time.monotonic() >= self._next_update:
            self._send(done)

    def complete(self) -> None:
        """Sends 100 per cent."""
        self._send(100.0)

    def _send(self, done: float) -> None:
        wait = _UPDATE_S
        try:
            if self._id is None:
                key = f"progress-{self._job.replace('.', '-')}"
                artifact_id = create_progress_artifact(done, key, f"Progress of {self._job}")
                assert isinstance(artifact_id, UUID)
                self._id = artifact_id
            else:
                update_progress_artifact(self._id, done)
        except Exception:  # noqa: BLE001 - whatever the transport raises; only display
            wait = _AFTER_FAILURE_S
        self._next_update = time.monotonic() + wait


def wait_for_server(log: Callable[[str], None], timeout_s: float = SERVER_TIMEOUT_S) -> None:
    """Waits until Prefect's server answers, for at most ``timeout_s`` seconds."""
    deadline = time.monotonic() + timeout_s
    is_logged = False
    with get_client(sync_client=True) as client:
        while (error := client.api_healthcheck()) and time.monotonic() < deadline:
            if not is_logged:
                log(
                    f"Prefect does not answer ({type(error).__name__}); "
                    "waiting for it to report the job's end"
                )
            is_logged = True
            time.sleep(_POLL_S)
