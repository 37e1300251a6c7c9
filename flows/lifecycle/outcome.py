"""Final state of a flow run: ``Failed`` with the reason as message, or ``Skipped``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar, cast

from prefect import get_run_logger
from prefect.context import FlowRunContext
from prefect.states import Completed, Failed

from flows.lifecycle.job_process import JobError
from flows.lifecycle.superseded import superseded_by
from runtime.errors import UserError, first_line

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")

_MAX_REASON = 4000
"""Longest reason, in characters."""


def with_final_state(function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
    """Decorates the function of a flow, below ``@flow``.

    A ``UserError`` or ``JobError`` fails the flow with ``error: …`` as its state's message, instead
    of Prefect's "encountered an exception"; the flow's caller still gets the exception. A scheduled
    run that a newer one supersedes ends at once as ``Skipped``.
    """

    @wraps(function)
    def run(*arguments: Parameters.args, **named: Parameters.kwargs) -> Returned:
        if FlowRunContext.get() is None:
            return function(*arguments, **named)
        if reason := superseded_by():
            return cast(Returned, Completed(name="Skipped", message=reason))
        try:
            return function(*arguments, **named)
        except (UserError, JobError) as error:
            reason = f"error: {first_line(error, _MAX_REASON)}"
            get_run_logger().error(reason)
            return cast(Returned, Failed(message=reason, data=error))

    # Otherwise Prefect would resolve the annotations' names in this module.
    vars(run)["__signature__"] = inspect.signature(function, eval_str=True)
    return run
