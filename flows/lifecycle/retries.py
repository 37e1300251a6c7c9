"""When a step is retried, and how long it may take."""

from __future__ import annotations

from typing import Any

from prefect.task_engine import TaskRunTimeoutError

from runtime.errors import UnavailableError, UserError

HOUR_S = 3600


def may_help(task: Any, task_run: Any, state: Any) -> bool:  # noqa: ARG001 - Prefect's signature
    """Whether a retry can help: not if the input is at fault or the step has timed out."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, UserError):
        return isinstance(error, UnavailableError)
    # Any other TimeoutError comes from a connection.
    return not isinstance(error, TaskRunTimeoutError)


RETRIED: dict[str, Any] = {
    "retries": 3,
    # Long enough in all for a service to be started again.
    "retry_delay_seconds": [10, 30, 90],
    # 0.6 to 1.5 times the delay, so that runs do not all retry at once.
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": may_help,
}
"""How a job's task is retried: arguments of Prefect's ``task``."""
