"""After an outage, a schedule's runs are late: only the newest of them has work to do."""

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


def newer_run() -> str | None:
    """Why this flow run has nothing to do: a newer one, due by now, does the same.

    Only a schedule's run is ever superseded, and only by another one: of the same deployment, with
    the same parameters, and not cancelled. A run that has ended once before is here again because
    a person wants it.
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
        found = client.read_flow_runs(
            flow_run_filter=due, sort=FlowRunSort.EXPECTED_START_TIME_DESC
        )
    newest = next((one for one in found if _supersedes(one, run)), None)
    if newest is None:
        return None
    return f"superseded by the run that was due at {newest.expected_start_time:%Y-%m-%d %H:%M %Z}"


def _supersedes(one: FlowRun, run: FlowRun) -> bool:
    assert one.expected_start_time
    assert run.expected_start_time
    is_cancelled = one.state and (one.state.is_cancelled() or one.state.is_cancelling())
    return (
        one.auto_scheduled
        and one.expected_start_time > run.expected_start_time
        and one.parameters == run.parameters
        and not is_cancelled
    )
