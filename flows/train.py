"""Flow ``train``: a published dataset to a registered model."""

from __future__ import annotations

from prefect import flow, get_run_logger, task

from flows.ingest import may_help
from flows.steps import run_job
from schemas.cli import to_arguments
from schemas.config import TrainConfig
from schemas.layout import TRACKING_URI


@task(name="model.train", retries=1, retry_delay_seconds=30, retry_condition_fn=may_help)
def train_model(dataset: str, config: TrainConfig, tracking_uri: str) -> str:
    """Runs the training; returns the model's URI."""
    arguments = [f"--dataset={dataset}", f"--tracking_uri={tracking_uri}", "--reuse"]
    return run_job("model.train", [*arguments, *to_arguments(config)], get_run_logger().info)


@flow(name="train", flow_run_name="train-on-{dataset}")
def train(
    dataset: str, config: TrainConfig = TrainConfig(), tracking_uri: str = TRACKING_URI
) -> str:
    """Trains and registers the U-Net, or finds the version that the same input made before.

    Args:
        dataset: Folder of a published dataset.
        config: How the network is trained.
        tracking_uri: MLflow's server or store.

    Returns:
        `models:/<name>/<version>`.
    """
    return train_model(dataset, config, tracking_uri)
