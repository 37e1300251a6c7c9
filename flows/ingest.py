"""Flow ``ingest``: raw PNG pairs to a published dataset."""

from __future__ import annotations

from prefect import flow, get_run_logger, task

from flows.durations import ingest_key, timed_job
from flows.names import named
from flows.retries import BACKOFF, HOUR_S, JITTER, may_help
from schemas.cli import to_arguments
from schemas.config import IngestConfig
from schemas.manifest import load_manifest


@task(
    name="beam.ingest",
    tags={"beam"},
    retries=3,
    retry_delay_seconds=BACKOFF,
    retry_jitter_factor=JITTER,
    retry_condition_fn=may_help,
    timeout_seconds=6 * HOUR_S,
)
def ingest_dataset(source: str, output: str, config: IngestConfig) -> str:
    """Runs the Beam job; returns the published folder."""
    return timed_job(
        "beam.ingest",
        [f"--source={source}", f"--output={output}/datasets", *to_arguments(config)],
        get_run_logger().info,
        output,
        lambda folder: (ingest_key(config), load_manifest(folder).records),
    )


@flow(name="ingest", flow_run_name=named("ingest", "source"))
def ingest(source: str, output: str = "outputs", config: IngestConfig = IngestConfig()) -> str:
    """Publishes the dataset of a folder of raw pairs, or finds that nothing has changed.

    Args:
        source: Folder or URI that holds CameraRGB beside CameraSeg, at any depth.
        output: Root of all outputs; datasets lie in its folder `datasets`.
        config: How pairs become records.

    Returns:
        The published folder.
    """
    return ingest_dataset(source, output, config)
