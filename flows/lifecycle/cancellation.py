"""Cancellation: stops the jobs of a stopped or cancelled flow where Prefect alone would not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from uuid import UUID

from prefect import get_client
from prefect.exceptions import Abort
from prefect.runtime import flow_run
from prefect.states import Cancelled

_POLL_S = 30

_STOP_REQUEST: ContextVar[threading.Event | None] = ContextVar("_STOP_REQUEST", default=None)
"""Set when the jobs in other threads must stop. Prefect's threads inherit the flow's context."""


@contextmanager
def stop_jobs_on_exception() -> Iterator[None]:
    """Stops the jobs in the threads of the block's task runner if the block raises an exception.

    Prefect stops a flow by an exception in the main thread, and then waits for the other threads.
    """
    stop_request = threading.Event()
    token = _STOP_REQUEST.set(stop_request)
    try:
        yield
    except BaseException:
        stop_request.set()
        raise
    finally:
        _STOP_REQUEST.reset(token)


@contextmanager
def cancellation_check() -> Iterator[Callable[[], None]]:
    """Yields a function that raises Prefect's ``Abort`` once the flow is stopped or cancelled.

    Usually the worker stops a cancelled flow's process. After an outage of Prefect's server the
    worker misses cancellations, and a flow may have no worker. So the server is polled too.
    """
    done, cancelled = threading.Event(), threading.Event()

    def poll() -> None:
        while not cancelled.is_set() and not done.wait(_POLL_S):
            # Transport errors are ignored: the next poll may succeed.
            with suppress(Exception):
                if _is_cancelled():
                    cancelled.set()

    def check() -> None:
        # Prefect neither retries a task that raises Abort nor reports a state for it.
        if cancelled.is_set():
            raise Abort("the flow run has been cancelled")
        if (stop_request := _STOP_REQUEST.get()) and stop_request.is_set():
            raise Abort("the flow has been stopped")

    # A thread of its own, since a request may take a minute during an outage.
    threading.Thread(target=copy_context().run, args=(poll,), daemon=True).start()
    try:
        yield check
    except Abort:
        if cancelled.is_set():
            _report_cancelled()
        raise
    finally:
        done.set()


def _run_ids() -> set[UUID]:
    """This flow run and its root, which may be the same."""
    return {UUID(str(flow_run.id)), UUID(str(flow_run.root_flow_run_id))}


def _is_cancelled() -> bool:
    """Whether this flow run or its root is being cancelled, or is cancelled."""
    with get_client(sync_client=True) as client:
        states = [client.read_flow_run(run).state for run in _run_ids()]
    return any(state and (state.is_cancelling() or state.is_cancelled()) for state in states)


def _report_cancelled() -> None:
    """Reports both runs as cancelled, as the worker would.

    If only the root is cancelled so far, the server cancels this run some seconds later, when no
    process is left to report its end.
    """
    for run in _run_ids():
        with suppress(Exception), get_client(sync_client=True) as client:
            client.set_flow_run_state(run, Cancelled(message="The flow's job has been ended."))
