"""Superseded runs: of a schedule's late runs, e.g. after an outage, only the newest does work."""

from __future__ import annotations

from datetime import UTC, datetime

from prefect import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext


def superseded_by() -> str | None:
    """The reason why this flow run has nothing to do, if a newer run that is due does the same.

    Only a scheduled run is superseded, and only by a later scheduled run of the same deployment and
    parameters that is not cancelled. A run that has ended before is never superseded: a person has
    started it again.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None or not run.auto_scheduled or run.deployment_id is None:
        return None
    due = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[run.deployment_id]),
        expected_start_time=FlowRunFilterExpectedStartTime(
            after_=run.expected_start_time, before_=datetime.now(UTC)
        ),
    )
    with get_client(sync_client=True) as client:
        if any(state.is_final() for state in client.read_flow_run_states(run.id)):
            return None
        later = client.read_flow_runs(
            flow_run_filter=due, sort=FlowRunSort.EXPECTED_START_TIME_DESC
        )
    newest = next((other for other in later if _supersedes(other, run)), None)
    if newest is None:
        return None
    return f"superseded by the run that was due at {newest.expected_start_time:%Y-%m-%d %H:%M %Z}"


def _supersedes(other: FlowRun, run: FlowRun) -> bool:
    assert other.expected_start_time
    assert run.expected_start_time
    is_cancelled = other.state and (other.state.is_cancelled() or other.state.is_cancelling())
    return (
        other.auto_scheduled
        and other.expected_start_time > run.expected_start_time
        and other.parameters == run.parameters
        and not is_cancelled
    )
