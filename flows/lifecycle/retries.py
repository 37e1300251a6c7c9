"""Retry policy of the tasks that run jobs."""

from __future__ import annotations

from typing import Any

from prefect.task_engine import TaskRunTimeoutError

from runtime.errors import UnavailableError, UserError

HOUR_S = 3600


def should_retry(task: Any, task_run: Any, state: Any) -> bool:  # noqa: ARG001 - Prefect's signature
    """Whether a retry can help: not if the input is at fault or the step has timed out."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, UserError):
        return isinstance(error, UnavailableError)
    # The timeout of a connection, any other TimeoutError, is retried.
    return not isinstance(error, TaskRunTimeoutError)


RETRY_OPTIONS: dict[str, Any] = {
    "retries": 3,
    # In all, long enough for a restart of a service.
    "retry_delay_seconds": [10, 30, 90],
    # 0.6 to 1.5 times the delay, so that runs do not all retry at once.
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": should_retry,
}
"""Arguments of Prefect's ``task``."""
