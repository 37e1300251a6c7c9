"""Flow ``ingest``: from raw PNG pairs to a published dataset."""

from __future__ import annotations

from prefect import flow, task

from flows.lifecycle.artifacts import publish_data_card
from flows.lifecycle.durations import ingest_key, run_timed_job
from flows.lifecycle.outcome import with_final_state
from flows.lifecycle.paths import PathOrUri
from flows.lifecycle.progress import report_progress
from flows.lifecycle.retries import HOUR_S, RETRY_OPTIONS
from flows.lifecycle.run_names import run_name_from
from runtime.command_line import to_arguments
from runtime.storage import join
from schemas.config import IngestConfig
from schemas.manifest import load_manifest


@task(
    name="beam.ingest",
    tags={"beam"},
    timeout_seconds=6 * HOUR_S,
    **RETRY_OPTIONS,
)
def ingest_dataset(source: str, output: str, config: IngestConfig) -> str:
    """Runs the Beam job; returns the published folder."""
    with report_progress("beam.ingest") as callbacks:
        return run_timed_job(
            "beam.ingest",
            [f"--source={source}", f"--output={join(output, 'datasets')}", *to_arguments(config)],
            callbacks,
            output,
            lambda folder: (ingest_key(config), load_manifest(folder).records),
        )


@flow(name="ingest", flow_run_name=run_name_from("ingest", "source"))
@with_final_state
def ingest(
    source: PathOrUri, output: PathOrUri = "outputs", config: IngestConfig = IngestConfig()
) -> str:
    """Publishes a folder of raw pairs as a dataset, unless nothing has changed.

    Args:
        source: Folder, archive or URI of the raw pairs, in the layout that the config names.
        output: Root of all outputs; datasets are in its folder `datasets`.
        config: How pairs become records.

    Returns:
        The published folder.
    """
    dataset = ingest_dataset(source, output, config)
    publish_data_card(dataset)
    return dataset
