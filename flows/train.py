"""Flow ``train``: a published dataset to a registered model."""

from __future__ import annotations

from prefect import flow, get_run_logger, task

from flows.artifacts import publish_model
from flows.durations import timed_job, train_key
from flows.names import named
from flows.retries import BACKOFF, HOUR_S, JITTER, may_help
from schemas.cli import to_arguments
from schemas.config import GateConfig, TrainConfig
from schemas.layout import TRACKING_URI
from schemas.manifest import load_manifest


@task(
    name="model.train",
    tags={"keras"},
    retries=3,
    retry_delay_seconds=BACKOFF,
    retry_jitter_factor=JITTER,
    retry_condition_fn=may_help,
    timeout_seconds=48 * HOUR_S,
)
def train_model(
    dataset: str, output: str, config: TrainConfig, gate: GateConfig, tracking_uri: str
) -> str:
    """Runs the training and the gate; returns the URI of the version to predict with."""
    arguments = [
        f"--dataset={dataset}",
        f"--tracking_uri={tracking_uri}",
        f"--state={output}/training",
        "--reuse",
        *to_arguments(config),
        *to_arguments(gate),
    ]

    def measure(_: str) -> tuple[str, int]:
        manifest = load_manifest(dataset)
        size = manifest.config.height, manifest.config.width
        return train_key(config, *size), manifest.splits["train"].records * config.epochs

    return timed_job("model.train", arguments, get_run_logger().info, output, measure)


@flow(name="train", flow_run_name=named("train-on", "dataset"))
def train(
    dataset: str,
    output: str = "outputs",
    config: TrainConfig = TrainConfig(),
    gate: GateConfig = GateConfig(),
    tracking_uri: str = TRACKING_URI,
) -> str:
    """Trains and registers the U-Net, or finds the version that the same input made before.

    Args:
        dataset: Folder of a published dataset.
        output: Root of all outputs; unfinished trainings lie in its folder `training`.
        config: How the network is trained.
        gate: When the new version becomes champion.
        tracking_uri: MLflow's server or store.

    Returns:
        `models:/<name>/<version>` to predict with: the new one, or the champion it did not beat.
    """
    model = train_model(dataset, output, config, gate, tracking_uri)
    publish_model(model, tracking_uri)
    return model
