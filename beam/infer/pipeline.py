"""The Beam graph of the inference job: images to Parquet tables of masks and class statistics."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import apache_beam as beam
import pyarrow as pa
from apache_beam.ml.inference.base import RunInference
from apache_beam.options.pipeline_options import PipelineOptions

from beam.infer import runs
from beam.infer.evaluation import confusion_rows, matrices_by_split, sum_matrices
from beam.infer.handler import UNetHandler
from beam.infer.incremental import PreviousRun, find_previous
from beam.infer.model_uri import copy_model, with_graph
from beam.infer.pictures import Prediction, Unpredicted
from beam.infer.plan import Job, plan_job
from beam.infer.publish import partition_lock, publish, unique_suffix
from beam.infer.read_pictures import COUNT, KEPT, PICTURES, REJECTS, ReadDataset, ReadPngs
from beam.infer.row_files import GatherRows, WriteRowFiles
from beam.infer.small_tables import WriteSmallTables
from beam.infer.table_parts import Columns, Row
from beam.infer.table_rows import rows_of
from beam.runners.run import is_local, pipeline_options, processes_of, run_pipeline
from beam.shared import staging as stages
from beam.shared.crash_journal import ReadSettings, run_without_crashing_files
from beam.shared.pairing import Reject
from beam.shared.progress import CountingDoFn, show_progress
from beam.shared.staged_listing import staged_listing
from runtime.command_line import log
from runtime.errors import disk_errors_as_user_errors
from runtime.mlflow_store import TRACKING_URI
from runtime.storage import is_remote, join
from schemas.config import InferConfig
from schemas.prediction import (
    CLASS_STATS,
    CONFUSION,
    MASKS,
    PREDICTION_REJECTS,
    with_footer,
)

SPOOL, TABLES, MODEL = "spool", "tables", "model"
"""Subfolders of the staging folder."""


def build(
    root: beam.Pipeline,
    job: Job,
    staging: str,
    progress: str,
    previous: PreviousRun | None,
    crashed: frozenset[str] = frozenset(),
) -> None:
    """Builds the graph from the source to the staged tables.

    Args:
        crashed: paths on which a decoder crashes.
    """
    tables = join(staging, TABLES)
    read = root | "Read" >> (
        ReadDataset(job, previous, progress)
        if job.manifest
        else ReadPngs(job, previous, progress, crashed)
    )
    described, failed = (
        read[PICTURES]
        | "Predict" >> RunInference(UNetHandler(job.model, job.runtime))
        | "MakeRows" >> beam.ParDo(_MakeRows(job, progress)).with_outputs(REJECTS, main="rows")
    )
    spool = join(staging, SPOOL)
    spooled = described | "Spool" >> beam.ParDo(WriteRowFiles(spool))

    def with_footers(**schemas: pa.Schema) -> dict[str, pa.Schema]:
        return {name: with_footer(schema, **job.footer()) for name, schema in schemas.items()}

    taxonomy, config = job.model.taxonomy, job.config
    confusion = (
        {"new": spooled, "reused": read[KEPT]}
        | "WriteImages"
        >> GatherRows(
            tables,
            spool,
            with_footers(masks=MASKS, class_stats=CLASS_STATS),
            round(config.part_mib * 2**20),
            config.row_group_mib << 20,
            job.run_id,
            len(taxonomy),
            {"masks": previous.masks, "class_stats": previous.class_stats} if previous else {},
        )
        | "Matrices" >> beam.FlatMapTuple(matrices_by_split)
        | "SumMatrices" >> beam.CombinePerKey(sum_matrices, len(taxonomy))
        | "ConfusionRows"
        >> beam.MapTuple(lambda split, matrix: confusion_rows(split, matrix, taxonomy, job.run_id))
        | "OfConfusion" >> beam.Map(lambda rows: ("confusion", rows))
    )
    rejects = (
        (read[REJECTS], failed)
        | "AllRejects" >> beam.Flatten()
        | "RejectRows" >> beam.Map(lambda reject: ("rejects", reject_rows(reject, job)))
    )
    _ = (
        (confusion, rejects)
        | "OtherRows" >> beam.Flatten()
        | "WriteOthers"
        >> WriteSmallTables(
            tables, with_footers(confusion=CONFUSION, rejects=PREDICTION_REJECTS), job.run_id
        )
    )
    reused = read[KEPT] | "Reused" >> beam.Map(lambda _: (runs.IMAGES_REUSED, 1))
    _ = (
        (read[COUNT], reused)
        | "Counted" >> beam.Flatten()
        | "SumCounts" >> beam.CombinePerKey(sum)
        | "NoteCounts" >> beam.MapTuple(runs.write_count, folder=staging)
    )


def run(
    model: str,
    source: str | None,
    dataset: str | None,
    output: str,
    config: InferConfig,
    tracking_uri: str = TRACKING_URI,
    flow_run_id: str | None = None,
    options: PipelineOptions | None = None,
    *,
    resume: bool = True,
    retry_rejects: bool = False,
) -> str:
    """Predicts a dataset or a folder of PNGs and publishes the tables.

    Args:
        model: MLflow URI or path of a ``.keras`` file.
        source: folder, archive or URI of images. Either ``source`` or ``dataset`` must be given.
        dataset: folder or URI of a published dataset.
        output: root of the tables, a folder or URI.
        flow_run_id: recorded in the ``runs`` table.
        resume: whether to reuse the rows of unchanged images from the published run.
        retry_rejects: whether to read rejected inputs again although their bytes are the same.

    Returns:
        The output folder.

    Raises:
        UserError: the model or the input cannot be used, or the output cannot be written.
    """
    root = stages.make_output(output)
    options = options or pipeline_options([])
    with tempfile.TemporaryDirectory(prefix="lyft-model-") as scratch:
        job = plan_job(model, source, dataset, config, tracking_uri, processes_of(options), scratch)
        predict(job, root, options, flow_run_id, resume=resume, retry_rejects=retry_rejects)
    return root


def predict(
    job: Job,
    root: str,
    options: PipelineOptions | None,
    flow_run_id: str | None,
    *,
    resume: bool,
    retry_rejects: bool,
) -> None:
    """Publishes the job's tables, unless they are already published; arguments as for ``run``."""
    options = options or pipeline_options([])
    partition = runs.partition_of(job.model, job.source_name)
    with disk_errors_as_user_errors(), partition_lock(root, partition):
        if resume and not retry_rejects and runs.is_unchanged(root, partition, job.run_id):
            return
        runs.check_same_origin(root, partition, job.source, job.fingerprint, job.model)
        with stages.staging_folder(root) as staging:
            previous = None
            if resume:
                previous = find_previous(
                    root,
                    partition,
                    job.recipe,
                    images_root=job.images_root,
                    retry_rejects=retry_rejects,
                )
            suffix = unique_suffix(root)
            counts = _stage(job, staging, previous, options, flow_run_id, suffix)
            publish(join(staging, TABLES), root, partition, suffix)
    log(
        f"{counts['images_read']:,} images read, {counts['images_predicted']:,} predicted "
        f"({counts['images_reused']:,} of them before), {counts['images_rejected']:,} rejected"
    )


def _stage(
    job: Job,
    staging: str,
    previous: PreviousRun | None,
    options: PipelineOptions,
    flow_run_id: str | None,
    suffix: str,
) -> dict[str, int]:
    """Runs the pipeline, writes the tables ``classes`` and ``runs``, returns the counts of images.

    Raises:
        UserError: no image could be predicted, or the network failed on too many.
    """
    started = datetime.now(UTC)
    tables = join(staging, TABLES)
    folders = [*(join(tables, name) for name in runs.TABLES), join(staging, SPOOL)]
    stages.make_folders(*folders)
    with stages.local_work_folder(staging) as own:
        model, progress = job.model, own / "progress"
        if job.runtime.engine == "openvino":
            model = with_graph(model, own / "openvino")
        # Other machines see the staging folder, but not the place where the model was found.
        if is_remote(staging) or not is_local(options):
            model = copy_model(model, join(staging, MODEL))
        raw = job.raw and replace(job.raw, listed=staged_listing(job.listing, staging))
        job = replace(job, model=model, raw=raw)
        with show_progress("infer", progress, job.images, "images"):
            run_without_crashing_files(
                lambda crashed: run_pipeline(
                    lambda root: build(root, job, staging, str(progress), previous, crashed),
                    options,
                ),
                lambda: stages.empty_folders(*folders),
                progress,
                ReadSettings(job.source, job.config, job.model.mask_taxonomy),
            )
    counts = runs.count_images(staging, tables)
    runs.check_failures(tables, counts["images_read"], job.config.max_failed_fraction)
    if counts["images_predicted"] == 0:
        raise runs.nothing_predicted(tables, job.source)
    runs.warn_of_masks(tables)
    run = {
        **job.footer(),
        "model": job.model.name,
        "version": job.model.version,
        "source": job.source_name,
        "source_uri": job.source,
        **counts,
        "flow_run_id": flow_run_id,
        "started_at": started,
        "finished_at": datetime.now(UTC),
    }
    runs.write_classes(tables, job.model.taxonomy, job.run_id, job.footer())
    runs.write_run(tables, run, job.footer(), suffix)
    return counts


def reject_rows(reject: Reject, job: Job) -> tuple[str, list[Row]]:
    """The row of a reject, in a list, keyed by its path."""
    row = {
        "image_id": reject.id,
        "source_uri": join(job.images_root, reject.path),
        "stage": reject.stage,
        "code": reject.code,
        "message": reject.message,
        "source_sha256": reject.sha256,
        "run_id": job.run_id,
    }
    return reject.path, [row]


class _MakeRows(CountingDoFn):
    """Turns predictions into rows, and pictures that could not be predicted into rejects."""

    def __init__(self, job: Job, progress: str) -> None:
        super().__init__("infer", progress)
        self._job = job

    def process(
        self, element: Prediction | Unpredicted
    ) -> Iterator[tuple[Row, Columns] | beam.pvalue.TaggedOutput]:
        picture = element.picture
        if isinstance(element, Unpredicted):
            self.counters.add(f"rejected.{element.code}")
            reject = Reject(
                picture.image_id,
                picture.path,
                runs.PREDICT_STAGE,
                element.code,
                element.message,
                picture.image_sha256,
            )
            yield beam.pvalue.TaggedOutput(REJECTS, reject)
            return
        self.counters.add("predicted")
        yield rows_of(element, self._job.model, self._job.run_id)
