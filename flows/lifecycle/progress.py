"""Passes a job's lines to the run's log and to a progress artifact on the run's page in Prefect."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect import get_client, get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from flows.lifecycle.cancellation import ended_with_the_flow
from flows.lifecycle.job_process import Watch

_BEAM = re.compile(r" done \((\d+)%\)")
_EPOCH = re.compile(r"epoch (\d+)/(\d+), (?:step (\d+)/(\d+))?")

_UPDATE_S = 5.0
_AFTER_FAILURE_S = 60.0
_POLL_S = 2.0
PATIENCE_S = 900.0
"""Longest wait, after a job has ended, for a Prefect server that does not answer.

After about 16 minutes without a server, Prefect's workers end, and their runs with them.
"""


def percent(line: str) -> float | None:
    """A job's progress in per cent, from one of its lines; None if the line does not show it."""
    if beam := _BEAM.search(line):
        return float(beam[1])
    if found := _EPOCH.search(line):
        epoch, epochs, step, steps = (int(one) if one else None for one in found.groups())
        assert epoch is not None
        assert epochs
        done = epoch - 1 + step / steps if step is not None and steps else epoch
        return 100 * done / epochs
    return None


@contextmanager
def watched(job: str) -> Iterator[Watch]:
    """Yields what watches the job that runs in the block: logs its lines, may end it.

    On exit, waits until Prefect's server answers: only then can the run report how the job ended.
    """
    logger, progress = get_run_logger(), Progress(job)

    def take(line: str) -> None:
        logger.info(line)
        if (share := percent(line)) is not None:
            progress.show(share)

    try:
        with ended_with_the_flow() as check:
            yield Watch(take, check)
    except Exception:
        wait_for_server(logger.warning)
        raise
    wait_for_server(logger.warning)
    progress.end()


class Progress:
    """A progress artifact that is updated now and then; a failed update does not stop the job."""

    def __init__(self, job: str) -> None:
        self._job = job
        self._id: UUID | None = None
        self._next = 0.0

    def show(self, share: float) -> None:
        """Updates the percentage that is done, unless the last update was only a moment ago."""
        if time.monotonic() >= self._next:
            self._send(share)

    def end(self) -> None:
        """Updates the percentage to 100."""
        self._send(100.0)

    def _send(self, share: float) -> None:
        wait = _UPDATE_S
        try:
            if self._id is None:
                key = f"progress-{self._job.replace('.', '-')}"
                made = create_progress_artifact(share, key, f"Progress of {self._job}")
                assert isinstance(made, UUID)
                self._id = made
            else:
                update_progress_artifact(self._id, share)
        except Exception:  # noqa: BLE001 - whatever the transport raises; only display
            wait = _AFTER_FAILURE_S
        self._next = time.monotonic() + wait


def wait_for_server(log: Callable[[str], None], patience_s: float = PATIENCE_S) -> None:
    """Waits until Prefect's server answers, for at most ``patience_s`` seconds."""
    deadline = time.monotonic() + patience_s
    said = False
    with get_client(sync_client=True) as client:
        while (error := client.api_healthcheck()) and time.monotonic() < deadline:
            if not said:
                log(
                    f"Prefect does not answer ({type(error).__name__}); "
                    "waiting for it to report the job's end"
                )
            said = True
            time.sleep(_POLL_S)
