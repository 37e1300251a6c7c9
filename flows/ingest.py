"""Flow ``ingest``: from raw PNG pairs to a published dataset."""

from __future__ import annotations

from prefect import flow, task

from flows.lifecycle.artifacts import publish_data_card
from flows.lifecycle.durations import ingest_key, timed_job
from flows.lifecycle.outcome import concluded
from flows.lifecycle.paths import Place
from flows.lifecycle.progress import watched
from flows.lifecycle.retries import HOUR_S, RETRIED
from flows.lifecycle.run_names import named
from runtime.command_line import to_arguments
from runtime.storage import join
from schemas.config import IngestConfig
from schemas.manifest import load_manifest


@task(
    name="beam.ingest",
    tags={"beam"},
    timeout_seconds=6 * HOUR_S,
    **RETRIED,
)
def ingest_dataset(source: str, output: str, config: IngestConfig) -> str:
    """Runs the Beam job; returns the published folder."""
    with watched("beam.ingest") as watch:
        return timed_job(
            "beam.ingest",
            [f"--source={source}", f"--output={join(output, 'datasets')}", *to_arguments(config)],
            watch,
            output,
            lambda folder: (ingest_key(config), load_manifest(folder).records),
        )


@flow(name="ingest", flow_run_name=named("ingest", "source"))
@concluded
def ingest(source: Place, output: Place = "outputs", config: IngestConfig = IngestConfig()) -> str:
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
