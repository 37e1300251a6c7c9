"""Flow ``ingest``: raw PNG pairs to a published dataset."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger, task

from flows.steps import run_job
from schemas.cli import to_arguments
from schemas.config import IngestConfig
from schemas.errors import UserError


def may_help(task: Any, task_run: Any, state: Any) -> bool:  # noqa: ARG001 - Prefect's signature
    """Whether a retry can help: not where the input is at fault."""
    return not isinstance(state.result(raise_on_failure=False), UserError)


@task(name="beam.ingest", retries=2, retry_delay_seconds=[10, 60], retry_condition_fn=may_help)
def ingest_dataset(source: str, output: str, config: IngestConfig) -> str:
    """Runs the Beam job; returns the published folder."""
    arguments = [f"--source={source}", f"--output={output}", *to_arguments(config)]
    return run_job("beam.ingest", arguments, get_run_logger().info)


@flow(name="ingest", flow_run_name="ingest-{source}")
def ingest(source: str, output: str = "outputs", config: IngestConfig = IngestConfig()) -> str:
    """Publishes the dataset of a folder of raw pairs, or finds that nothing has changed.

    Args:
        source: Folder or URI that holds CameraRGB beside CameraSeg, at any depth.
        output: Root of all outputs; datasets lie in its folder `datasets`.
        config: How pairs become records.

    Returns:
        The published folder.
    """
    return ingest_dataset(source, f"{output}/datasets", config)
