"""Flow ``ingest-train-infer``: from raw PNG pairs to a model and its tables, in one run."""

from __future__ import annotations

from typing import Literal, NamedTuple

from prefect import flow

from flows.infer import infer
from flows.ingest import ingest
from flows.lifecycle.artifacts import publish_class_table, publish_links
from flows.lifecycle.outcome import with_final_state
from flows.lifecycle.paths import PathOrUri
from flows.lifecycle.preflight import check_parameters
from flows.lifecycle.run_names import run_name_from
from flows.lifecycle.summary import class_summary, partition_of
from flows.tasks.drift import MAX_DRIFT, MaxDrift
from flows.tasks.evaluate import evaluate_model
from flows.tasks.masks import MaskFiles, write_masks
from flows.tasks.remote_training import train_remotely
from flows.tasks.report import write_report
from flows.train import train
from runtime.mlflow_store import TRACKING_URI
from schemas.config import GateConfig, InferConfig, IngestConfig, TrainConfig
from schemas.layout import dataset_source_name, folder_source_name
from schemas.manifest import load_manifest


class Results(NamedTuple):
    """Outputs of a run.

    Attributes:
        dataset: folder of the published dataset.
        model: ``models:/<name>/<version>``.
        predictions: root of the tables.
        partition: partition of this run's rows, below each table.
        report: HTML page on these rows; a panel of test images is beside it, as ``.png``.
    """

    dataset: str
    model: str
    predictions: str
    partition: str
    report: str


@flow(name="ingest-train-infer", flow_run_name=run_name_from("ingest-train-infer", "source"))
@with_final_state
def ingest_train_infer(
    source: PathOrUri,
    output: PathOrUri = "outputs",
    infer_source: PathOrUri | None = None,
    tracking_uri: str = TRACKING_URI,
    train_on: Literal["here", "gpu"] = "here",
    ingest_config: IngestConfig = IngestConfig(),
    train_config: TrainConfig = TrainConfig(),
    gate_config: GateConfig = GateConfig(),
    infer_config: InferConfig = InferConfig(),
    evaluate_on: list[PathOrUri] | None = None,
    mask_files: MaskFiles = "none",
    max_drift: MaxDrift = MAX_DRIFT,
) -> Results:
    """Ingests raw pairs, trains on them, predicts, and publishes tables.

    A step for which nothing has changed since an earlier run says so and is skipped.

    Args:
        source: Folder, archive or URI of the raw pairs, in the layout that the config names.
        output: Root of all outputs.
        infer_source: Folder or URI of PNGs to predict on; the dataset itself if left out.
        tracking_uri: URI of the MLflow server or store.
        train_on: Where to train: `here`, or `gpu` for a worker of pool `gpu` (deployment
            `train/train`), which must see the same folders.
        ingest_config: How pairs become records.
        train_config: How the network is trained.
        gate_config: When the new version becomes champion; predictions use the champion.
        infer_config: How images are predicted and rows are written.
        evaluate_on: Folders of further datasets, e.g. of other drives, on whose images the model is
            judged as well; its metrics are in MLflow and on the run's page.
        mask_files: Also writes the masks as files, to `<output>/masks`: `palette`, `index` or
            `colour` PNGs, or `coco` annotations.
        max_drift: Largest distance, 0 to 1, of the predicted class shares from those on the model's
            validation split; above it, the run warns and emits the event `lyft.drift.exceeded`.
    """
    check_parameters(ingest_config, train_config, gate_config, infer_source, evaluate_on or [])
    dataset = ingest(source, output, ingest_config)
    train_step = train if train_on == "here" else train_remotely
    model = train_step(dataset, output, train_config, gate_config, tracking_uri)
    for other in evaluate_on or []:
        evaluate_model(model, other, tracking_uri)
    predictions = infer(
        model=model,
        dataset=None if infer_source else dataset,
        source=infer_source,
        output=output,
        config=infer_config,
        tracking_uri=tracking_uri,
        max_drift=max_drift,
    )
    if infer_source:
        source_name = folder_source_name(infer_source)
    else:
        fingerprint = load_manifest(dataset).fingerprint
        source_name = dataset_source_name(ingest_config.name, fingerprint, infer_config.split)
    partition = partition_of(model, infer_config.source_name or source_name)
    publish_class_table(class_summary(predictions, partition), model)
    report = write_report(
        output, predictions, partition, None if infer_source else dataset, tracking_uri
    )
    if mask_files != "none":
        write_masks(output, predictions, partition, mask_files)
    publish_links(dataset, model, predictions, tracking_uri)
    return Results(dataset, model, predictions, partition, report)
