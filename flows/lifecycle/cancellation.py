"""Ends the jobs of a flow that is stopped or cancelled, where Prefect alone would not."""

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

_ASK_S = 30

_ENDS: ContextVar[threading.Event | None] = ContextVar("_ENDS", default=None)
"""Set when the jobs in other threads must end. Prefect's threads inherit the flow's context."""


@contextmanager
def ended_together() -> Iterator[None]:
    """If the block is left by an exception, ends the jobs that its task runner's threads run.

    Prefect stops a flow by an exception in the main thread, and then waits for the others.
    """
    ends = threading.Event()
    token = _ENDS.set(ends)
    try:
        yield
    except BaseException:
        ends.set()
        raise
    finally:
        _ENDS.reset(token)


@contextmanager
def ended_with_the_flow() -> Iterator[Callable[[], None]]:
    """Yields a function that raises Prefect's ``Abort`` once the flow is stopped or cancelled.

    Usually the worker stops a cancelled flow's process. After an outage of Prefect's server it
    hears of no cancellation any more, and without a worker nobody does: the server is asked too.
    """
    over, cancelled = threading.Event(), threading.Event()

    def ask() -> None:
        while not cancelled.is_set() and not over.wait(_ASK_S):
            # Whatever the transport raises: it is asked again.
            with suppress(Exception):
                if _is_cancelled():
                    cancelled.set()

    def check() -> None:
        # Prefect does not try again what raises this, and reports no state for it.
        if cancelled.is_set():
            raise Abort("the flow run has been cancelled")
        if (ends := _ENDS.get()) and ends.is_set():
            raise Abort("the flow has been stopped")

    # A thread of its own, since a request may take a minute during an outage.
    threading.Thread(target=copy_context().run, args=(ask,), daemon=True).start()
    try:
        yield check
    except Abort:
        if cancelled.is_set():
            _conclude()
        raise
    finally:
        over.set()


def _runs() -> set[UUID]:
    """This flow run and its root, which may be the same."""
    return {UUID(str(flow_run.id)), UUID(str(flow_run.root_flow_run_id))}


def _is_cancelled() -> bool:
    """Whether this flow run or its root is being cancelled, or is cancelled."""
    with get_client(sync_client=True) as client:
        states = [client.read_flow_run(run).state for run in _runs()]
    return any(now and (now.is_cancelling() or now.is_cancelled()) for now in states)


def _conclude() -> None:
    """Reports that the runs have ended, as the worker would.

    Also this run, if only its root has been cancelled so far: the server follows with it some
    seconds later, when no process is left to answer.
    """
    for run in _runs():
        with suppress(Exception), get_client(sync_client=True) as client:
            client.set_flow_run_state(run, Cancelled(message="The flow's job has been ended."))
