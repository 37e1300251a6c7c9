"""Training on a worker of pool ``gpu``: starts it as a subflow and waits for its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx
from prefect import get_client, get_run_logger
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.states import Cancelling

from flows.lifecycle.artifacts import published_model
from flows.lifecycle.cancellation import cancellation_check
from flows.lifecycle.progress import SERVER_TIMEOUT_S
from flows.lifecycle.retries import HOUR_S
from runtime.errors import UserError
from schemas.config import GateConfig, TrainConfig

START_TIMEOUT_S = 6 * HOUR_S
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
    # Prefect's own wait would fail after an outage of its server of more than a minute.
    run = run_deployment("train/train", parameters=parameters, timeout=0)
    assert isinstance(run, FlowRun)
    with cancellation_check() as check:
        ended = _wait_for_end(run, check)
    if ended.state is None or not ended.state.is_completed():
        raise UserError(f"training on pool gpu, flow run {ended.name!r}, {_describe_end(ended)}")
    return published_model(run.id)


def _describe_end(run: FlowRun) -> str:
    message = ((run.state and run.state.message) or "").removeprefix("error: ")
    return f"ended as {run.state_name}: {message or 'its page says more'}"


def _wait_for_end(run: FlowRun, check: Callable[[], None]) -> FlowRun:
    """Polls the run until it has ended and returns it; cancels it if no worker starts it in time.

    Args:
        check: called before each request; an exception that it raises ends the wait.
    """
    requested = last_answer = time.monotonic()
    with get_client(sync_client=True) as client:
        while True:
            check()
            try:
                current = client.read_flow_run(run.id)
                if current.state and current.state.is_final():
                    return current
                last_answer = time.monotonic()
                if current.start_time is None and last_answer - requested > START_TIMEOUT_S:
                    client.set_flow_run_state(run.id, Cancelling(message="No worker started it."))
                    break
            except httpx.HTTPError:
                if time.monotonic() - last_answer > SERVER_TIMEOUT_S:
                    raise
            time.sleep(_POLL_S)
    raise UserError(
        f"no worker of pool gpu has started flow run {run.name!r} within "
        f"{START_TIMEOUT_S / HOUR_S:g} hours, so it is cancelled; start one with "
        "`prefect worker start --pool gpu`"
    )
