"""How a flow ends: the state's message is the reason of a failure; superseded runs do nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar, cast

from prefect import get_run_logger
from prefect.context import FlowRunContext
from prefect.states import Completed, Failed

from flows.lifecycle.job_process import JobError
from flows.lifecycle.superseded import newer_run
from runtime.errors import UserError, first_line

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")

_MOST = 4000
"""Longest reason, in characters."""


def concluded(function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
    """Decorates the function of a flow, below ``@flow``.

    A ``UserError`` or ``JobError`` fails the flow with ``error: …`` as its state's message, where
    Prefect would say that it encountered an exception; whoever called the flow still gets the
    exception. A run that its schedule has made, and which a newer one has superseded, ends at once
    as ``Skipped``.
    """

    @wraps(function)
    def run(*arguments: Parameters.args, **named: Parameters.kwargs) -> Returned:
        if FlowRunContext.get() is None:
            return function(*arguments, **named)
        if newer := newer_run():
            return cast(Returned, Completed(name="Skipped", message=newer))
        try:
            return function(*arguments, **named)
        except (UserError, JobError) as error:
            reason = f"error: {first_line(error, _MOST)}"
            get_run_logger().error(reason)
            return cast(Returned, Failed(message=reason, data=error))

    # Prefect would look up the names of types where this function is defined.
    vars(run)["__signature__"] = inspect.signature(function, eval_str=True)
    return run
