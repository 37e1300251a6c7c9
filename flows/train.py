"""Flow ``train``: from a published dataset to a registered model."""

from __future__ import annotations

import tempfile
from pathlib import Path

from prefect import flow, task

from flows.lifecycle.artifacts import publish_decision, publish_model
from flows.lifecycle.durations import run_timed_job, train_key
from flows.lifecycle.outcome import with_final_state
from flows.lifecycle.paths import PathOrUri
from flows.lifecycle.progress import report_progress
from flows.lifecycle.retries import HOUR_S, RETRY_OPTIONS
from flows.lifecycle.run_names import run_name_from
from runtime.command_line import to_arguments
from runtime.mlflow_store import TRACKING_URI
from runtime.storage import local_root
from schemas.config import GateConfig, TrainConfig
from schemas.manifest import load_manifest


@task(
    name="model.train",
    tags={"keras"},
    timeout_seconds=48 * HOUR_S,
    **RETRY_OPTIONS,
)
def train_model(
    dataset: str, output: str, config: TrainConfig, gate: GateConfig, tracking_uri: str
) -> str:
    """Runs the training and the gate; returns the URI of the version to predict with."""
    arguments = [
        f"--dataset={dataset}",
        f"--tracking_uri={tracking_uri}",
        f"--state={local_root(output)}/training",
        "--reuse",
        *to_arguments(config),
        *to_arguments(gate),
    ]

    def measure(_: str) -> tuple[str, int]:
        manifest = load_manifest(dataset)
        images = manifest.splits["train"].records
        key = train_key(config, manifest.config.height, manifest.config.width)
        return key, images * config.for_images(images).epochs

    with tempfile.TemporaryDirectory(prefix="lyft-gate-") as scratch:
        decision = Path(scratch, "gate.md")
        arguments.append(f"--decision={decision}")
        try:
            with report_progress("model.train") as callbacks:
                return run_timed_job("model.train", arguments, callbacks, output, measure)
        finally:
            publish_decision(decision)


@flow(name="train", flow_run_name=run_name_from("train-on", "dataset"))
@with_final_state
def train(
    dataset: PathOrUri,
    output: PathOrUri = "outputs",
    config: TrainConfig = TrainConfig(),
    gate: GateConfig = GateConfig(),
    tracking_uri: str = TRACKING_URI,
) -> str:
    """Trains and registers the U-Net, or reuses the version made from the same input before.

    Args:
        dataset: Folder of a published dataset.
        output: Root of all outputs; unfinished trainings are in its folder `training`.
        config: How the network is trained.
        gate: When the new version becomes champion.
        tracking_uri: URI of the MLflow server or store.

    Returns:
        `models:/<name>/<version>` to predict with: the new version, or the champion that it did not
        beat.
    """
    model = train_model(dataset, output, config, gate, tracking_uri)
    publish_model(model, tracking_uri)
    return model
