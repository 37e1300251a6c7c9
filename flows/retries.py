"""When a step is tried again, and how long it may take."""

from __future__ import annotations

from typing import Any

from prefect.tasks import exponential_backoff

from schemas.errors import UnavailableError, UserError

BACKOFF = exponential_backoff(backoff_factor=10)
"""10, 20, 40 … seconds, spread by ``JITTER`` so that runs do not come back all at once."""

JITTER = 0.5

HOUR_S = 3600


def may_help(task: Any, task_run: Any, state: Any) -> bool:  # noqa: ARG001 - Prefect's signature
    """Whether a retry can help: not where the input is at fault or the time is used up."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, UserError):
        return isinstance(error, UnavailableError)
    return not isinstance(error, TimeoutError)
