"""Flow ``infer``: from images and a model to Parquet tables."""

from __future__ import annotations

import tempfile
from pathlib import Path

from prefect import flow, task
from prefect.runtime import flow_run

from flows.lifecycle.job_process import Done, Watch, run_job
from flows.lifecycle.outcome import concluded
from flows.lifecycle.paths import Place
from flows.lifecycle.progress import watched
from flows.lifecycle.retries import HOUR_S, RETRIED
from flows.lifecycle.run_names import named
from flows.tasks.drift import MAX_DRIFT, MaxDrift, publish_drift
from runtime.command_line import to_arguments
from runtime.mlflow_store import TRACKING_URI
from runtime.storage import join
from schemas.config import InferConfig


@task(
    name="beam.infer",
    tags={"beam"},
    timeout_seconds=6 * HOUR_S,
    **RETRIED,
)
def infer_tables(
    model: str,
    places: list[str],
    output: str,
    config: InferConfig,
    tracking_uri: str,
    max_drift: float = MAX_DRIFT,
) -> str:
    """Runs the Beam job on ``--dataset=…`` or ``--source=…``; returns the root of the tables."""
    with tempfile.TemporaryDirectory(prefix="lyft-drift-") as scratch:
        drift = Path(scratch, "drift.json")
        with watched("beam.infer") as watch:
            how = (output, config, tracking_uri, watch)
            done = run_infer(model, [*places, f"--drift={drift}"], *how)
        publish_drift(drift, max_drift)
    return done.result


def run_infer(
    model: str,
    places: list[str],
    output: str,
    config: InferConfig,
    tracking_uri: str,
    watch: Watch,
) -> Done:
    """Runs the job and passes it the id of the root flow run of the calling task."""
    arguments = [
        f"--model={model}",
        *places,
        f"--output={output}",
        f"--tracking_uri={tracking_uri}",
        f"--flow_run_id={flow_run.root_flow_run_id}",
    ]
    return run_job("beam.infer", [*arguments, *to_arguments(config)], watch)


@flow(name="infer", flow_run_name=named("infer-with", "model"))
@concluded
def infer(
    model: str = "models:/lyft-unet@champion",
    dataset: Place | None = None,
    source: Place | None = None,
    output: Place = "outputs",
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
    given = {"dataset": dataset, "source": source}
    places = [f"--{name}={place}" for name, place in given.items() if place]
    root = join(output, "predictions")
    return infer_tables(model, places, root, config, tracking_uri, max_drift)
