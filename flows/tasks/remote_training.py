"""Training on a worker of another pool, as a subflow that is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx
from prefect import get_client, get_run_logger
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.states import Cancelling

from flows.lifecycle.artifacts import model_of
from flows.lifecycle.cancellation import ended_with_the_flow
from flows.lifecycle.progress import PATIENCE_S
from flows.lifecycle.retries import HOUR_S
from runtime.errors import UserError
from schemas.config import GateConfig, TrainConfig

START_WITHIN_S = 6 * HOUR_S
"""Longest wait for a worker to start the training; meanwhile, no other run of the flow starts."""

_POLL_S = 2.0


def train_remotely(
    dataset: str, output: str, config: TrainConfig, gate: GateConfig, tracking_uri: str
) -> str:
    """Runs the deployment ``train/train`` as a subflow and waits; cancelling the flow cancels it.

    Raises:
        UserError: the run did not start or complete; its own page says why.
    """
    parameters: dict[str, Any] = {
        "dataset": dataset,
        "output": output,
        "config": config.model_dump(),
        "gate": gate.model_dump(),
        "tracking_uri": tracking_uri,
    }
    get_run_logger().info("train/train runs on pool gpu; waiting for it")
    # Prefect's own waiting would not outlast a server that is away for more than a minute.
    run = run_deployment("train/train", parameters=parameters, timeout=0)
    assert isinstance(run, FlowRun)
    with ended_with_the_flow() as check:
        ended = _wait_for(run, check)
    if ended.state is None or not ended.state.is_completed():
        raise UserError(f"training on pool gpu, flow run {ended.name!r}, {_end_of(ended)}")
    return model_of(run.id)


def _end_of(run: FlowRun) -> str:
    said = ((run.state and run.state.message) or "").removeprefix("error: ")
    return f"ended as {run.state_name}: {said or 'its page says more'}"


def _wait_for(run: FlowRun, check: Callable[[], None]) -> FlowRun:
    """The run once it has ended; cancels it if no worker starts it in time."""
    asked = heard = time.monotonic()
    with get_client(sync_client=True) as client:
        while True:
            check()
            try:
                found = client.read_flow_run(run.id)
                if found.state and found.state.is_final():
                    return found
                heard = time.monotonic()
                if found.start_time is None and heard - asked > START_WITHIN_S:
                    client.set_flow_run_state(run.id, Cancelling(message="No worker started it."))
                    break
            except httpx.HTTPError:
                if time.monotonic() - heard > PATIENCE_S:
                    raise
            time.sleep(_POLL_S)
    raise UserError(
        f"no worker of pool gpu has started flow run {run.name!r} within "
        f"{START_WITHIN_S / HOUR_S:g} hours, so it is cancelled; start one with "
        "`prefect worker start --pool gpu`"
    )
