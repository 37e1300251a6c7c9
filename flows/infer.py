"""Flow ``infer``: from images and a model to Parquet tables."""

from __future__ import annotations

import tempfile
from pathlib import Path

from prefect import flow, task
from prefect.runtime import flow_run

from flows.lifecycle.job_process import JobCallbacks, JobResult, run_job
from flows.lifecycle.outcome import with_final_state
from flows.lifecycle.paths import PathOrUri
from flows.lifecycle.progress import report_progress
from flows.lifecycle.retries import HOUR_S, RETRY_OPTIONS
from flows.lifecycle.run_names import run_name_from
from flows.tasks.drift import MAX_DRIFT, MaxDrift, publish_drift
from runtime.command_line import to_arguments
from runtime.mlflow_store import TRACKING_URI
from runtime.storage import join
from schemas.config import InferConfig


@task(
    name="beam.infer",
    tags={"beam"},
    timeout_seconds=6 * HOUR_S,
    **RETRY_OPTIONS,
)
def infer_tables(
    model: str,
    source_options: list[str],
    output: str,
    config: InferConfig,
    tracking_uri: str,
    max_drift: float,
) -> str:
    """Runs the Beam job on ``--dataset=…`` or ``--source=…``; returns the root of the tables."""
    with tempfile.TemporaryDirectory(prefix="lyft-drift-") as scratch:
        drift = Path(scratch, "drift.json")
        options = [*source_options, f"--drift={drift}"]
        with report_progress("beam.infer") as callbacks:
            result = run_infer(model, options, output, config, tracking_uri, callbacks)
        publish_drift(drift, max_drift)
    return result.output


def run_infer(
    model: str,
    options: list[str],
    output: str,
    config: InferConfig,
    tracking_uri: str,
    callbacks: JobCallbacks,
) -> JobResult:
    """Runs the job, which records the id of the calling task's root flow run in its tables."""
    arguments = [
        f"--model={model}",
        *options,
        f"--output={output}",
        f"--tracking_uri={tracking_uri}",
        f"--flow_run_id={flow_run.root_flow_run_id}",
    ]
    return run_job("beam.infer", [*arguments, *to_arguments(config)], callbacks)


@flow(name="infer", flow_run_name=run_name_from("infer-with", "model"))
@with_final_state
def infer(
    model: str = "models:/lyft-unet@champion",
    dataset: PathOrUri | None = None,
    source: PathOrUri | None = None,
    output: PathOrUri = "outputs",
    config: InferConfig = InferConfig(),
    tracking_uri: str = TRACKING_URI,
    max_drift: MaxDrift = MAX_DRIFT,
) -> str:
    """Writes masks and class statistics for a dataset or a folder of PNGs.

    Args:
        model: MLflow URI of a registered model, or a `.keras` file.
        dataset: Folder of a published dataset; leave it out if you give `source`.
        source: Folder, archive or URI of images; leave it out if you give `dataset`.
        output: Root of all outputs; the tables are in its folder `predictions`.
        config: How images are predicted and rows are written.
        tracking_uri: URI of the MLflow server or store.
        max_drift: Largest distance, 0 to 1, of the predicted class shares from those on the model's
            validation split; above it, the run warns and emits the event `lyft.drift.exceeded`.

    Returns:
        Root of the tables.
    """
    inputs = {"dataset": dataset, "source": source}
    options = [f"--{name}={value}" for name, value in inputs.items() if value]
    root = join(output, "predictions")
    return infer_tables(model, options, root, config, tracking_uri, max_drift)
