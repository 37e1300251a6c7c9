"""Flow ``infer``: images and a model to Parquet tables."""

from __future__ import annotations

from prefect import flow, get_run_logger, task
from prefect.runtime import flow_run

from flows.names import named
from flows.retries import BACKOFF, HOUR_S, JITTER, may_help
from flows.steps import run_job
from schemas.cli import to_arguments
from schemas.config import InferConfig
from schemas.layout import TRACKING_URI


@task(
    name="beam.infer",
    tags={"beam"},
    retries=3,
    retry_delay_seconds=BACKOFF,
    retry_jitter_factor=JITTER,
    retry_condition_fn=may_help,
    timeout_seconds=6 * HOUR_S,
)
def infer_tables(
    model: str, places: list[str], output: str, config: InferConfig, tracking_uri: str
) -> str:
    """Runs the Beam job on ``--dataset=…`` or ``--source=…``; returns the tables' root."""
    arguments = [
        f"--model={model}",
        *places,
        f"--output={output}",
        f"--tracking_uri={tracking_uri}",
        f"--flow_run_id={flow_run.root_flow_run_id}",
    ]
    return run_job("beam.infer", [*arguments, *to_arguments(config)], get_run_logger().info)


@flow(name="infer", flow_run_name=named("infer-with", "model"))
def infer(
    model: str = "models:/lyft-unet@champion",
    dataset: str | None = None,
    source: str | None = None,
    output: str = "outputs",
    config: InferConfig = InferConfig(),
    tracking_uri: str = TRACKING_URI,
) -> str:
    """Writes masks and class statistics of a dataset or of a folder of PNGs.

    Args:
        model: MLflow URI of a registered model, or a `.keras` file.
        dataset: Folder of a published dataset; or else
        source: Folder or URI of PNGs.
        output: Root of all outputs; tables lie in its folder `predictions`.
        config: How images are predicted and rows are written.
        tracking_uri: MLflow's server or store.

    Returns:
        Root of the tables.
    """
    given = {"dataset": dataset, "source": source}
    places = [f"--{name}={place}" for name, place in given.items() if place]
    return infer_tables(model, places, f"{output}/predictions", config, tracking_uri)
