"""Images to Parquet tables of masks and class statistics: ``python -m beam.infer``.

The last line of standard output is the output folder.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
from apache_beam.ml.inference.base import RunInference
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions

from beam import runs, storage
from beam.evaluation import SumMatrices, confusion_rows, matrices
from beam.handler import UNetHandler
from beam.model_uri import with_graph
from beam.pairing import Reject
from beam.parquet import WriteSmallTables
from beam.pictures import COUNT, KEPT, PICTURES, REJECTS, ReadDataset, ReadPngs
from beam.pipeline import disk_errors_are_mistakes, pipeline_options, run_pipeline, say
from beam.plan import Job, plan
from beam.predict import Prediction, Unpredicted
from beam.previous import Previous, find_previous
from beam.progress import CountingDoFn, watched
from beam.publish import partition_lock, publish
from beam.rows import describe
from beam.spool import Columns, Row, SpoolRows, WriteSpooled
from schemas.cli import add_config, config_from, run_main
from schemas.config import InferConfig
from schemas.errors import UserError
from schemas.layout import TRACKING_URI
from schemas.prediction import (
    CLASS_STATS,
    CONFUSION,
    MASKS,
    PREDICTION_REJECTS,
    with_footer,
)

PROGRESS, SPOOL, TABLES = "progress", "spool", "tables"
"""Folders of the staging folder."""


def build(root: beam.Pipeline, job: Job, staging: Path, previous: Previous) -> None:
    """The graph, from the source to the staged tables."""
    progress, tables = str(staging / PROGRESS), str(staging / TABLES)
    read = root | "Read" >> (ReadDataset if job.manifest else ReadPngs)(job, previous, progress)
    described, failed = (
        read[PICTURES]
        | "Predict" >> RunInference(UNetHandler(job.model, job.runtime))
        | "Describe" >> beam.ParDo(_Describe(job, progress)).with_outputs(REJECTS, main="rows")
    )
    spooled = described | "Spool" >> beam.ParDo(SpoolRows(str(staging / SPOOL)))
    refs = (spooled, read[KEPT]) | "AllImages" >> beam.Flatten()

    def footed(**schemas: pa.Schema) -> dict[str, pa.Schema]:
        return {name: with_footer(schema, **job.footer()) for name, schema in schemas.items()}

    taxonomy, limits = job.model.taxonomy, job.config
    confusion = (
        refs
        | "WriteImages"
        >> WriteSpooled(
            tables,
            footed(masks=MASKS, class_stats=CLASS_STATS),
            round(limits.part_mib * 2**20),
            limits.row_group_mib << 20,
            job.run_id,
        )
        | "Matrices" >> beam.FlatMapTuple(matrices)
        | "SumMatrices" >> beam.CombinePerKey(SumMatrices(len(taxonomy)))
        | "ConfusionRows"
        >> beam.MapTuple(lambda split, sums: confusion_rows(split, sums, taxonomy, job.run_id))
        | "OfConfusion" >> beam.Map(lambda rows: ("confusion", rows))
    )
    rejects = (
        (read[REJECTS], failed)
        | "AllRejects" >> beam.Flatten()
        | "RejectRows" >> beam.Map(lambda reject: ("_rejects", reject_rows(reject, job)))
    )
    _ = (
        (confusion, rejects)
        | "OtherRows" >> beam.Flatten()
        | "WriteOthers"
        >> WriteSmallTables(
            tables, footed(confusion=CONFUSION, _rejects=PREDICTION_REJECTS), job.run_id
        )
    )
    reused = read[KEPT] | "Reused" >> beam.Map(lambda _: (runs.IMAGES_REUSED, 1))
    _ = (
        (read[COUNT], reused)
        | "Counted" >> beam.Flatten()
        | "SumCounts" >> beam.CombinePerKey(sum)
        | "NoteCounts" >> beam.MapTuple(runs.note_count, folder=str(staging))
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
) -> Path:
    """Predicts a dataset or a folder of PNGs and publishes the tables.

    Args:
        model: MLflow URI or path of a ``.keras`` file.
        source: folder or URI of PNGs; exactly one of it and ``dataset``.
        dataset: folder of a published dataset.
        output: root of the tables.
        flow_run_id: noted in the table of runs.
        resume: takes over what the published run of this model version has of unchanged images.
        retry_rejects: looks again at rejects whose bytes have not changed.

    Returns:
        The output folder.

    Raises:
        UserError: the model or the input cannot be used, or no way to write.
    """
    root = storage.make_output(output)
    options = options or pipeline_options([])
    cores = len(os.sched_getaffinity(0))
    # 0 workers stand for one a core.
    processes = options.view_as(DirectOptions).direct_num_workers or cores
    job = plan(model, source, dataset, config, tracking_uri, processes)
    partition = runs.partition_of(job.model, job.source_name)
    with disk_errors_are_mistakes(), partition_lock(root, partition):
        if resume and not retry_rejects and runs.is_published(root, partition, job.run_id):
            say(f"nothing has changed: run {job.run_id} is published, all checksums verified")
            return root
        runs.check_source(root, partition, job.source)
        with storage.staging(root) as staging:
            previous = Previous()
            if resume:
                previous = find_previous(
                    root,
                    partition,
                    job.recipe,
                    staging / "previous.arrow",
                    images_root=job.images_root,
                    classes=len(job.model.taxonomy),
                    retry_rejects=retry_rejects,
                )
            counts = _stage(job, staging, previous, options, flow_run_id)
            publish(staging / TABLES, root, partition)
    say(
        f"{counts['images_read']:,} images read, {counts['images_predicted']:,} predicted "
        f"({counts['images_reused']:,} of them before), {counts['images_rejected']:,} rejected"
    )
    return root


def _stage(
    job: Job, staging: Path, previous: Previous, options: PipelineOptions, flow_run_id: str | None
) -> dict[str, int]:
    """Runs the pipeline, writes the tables that need no pipeline, counts.

    Raises:
        UserError: no image could be predicted.
    """
    started = datetime.now(UTC)
    for name in runs.TABLES:
        (staging / TABLES / name).mkdir(parents=True)
    (staging / SPOOL).mkdir()
    if job.runtime.engine == "openvino":
        job = replace(job, model=with_graph(job.model, staging / "openvino"))
    with watched("infer", staging / PROGRESS, job.images, "images"):
        run_pipeline(lambda pipeline: build(pipeline, job, staging, previous), options)
    counts = runs.count(staging, staging / TABLES)
    if counts["images_predicted"] == 0:
        raise UserError(f"no image of {job.source!r} could be predicted; {counts}")
    facts = {
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
    runs.write_classes(staging / TABLES, job.model.taxonomy, job.run_id, job.footer())
    runs.write_run(staging / TABLES, facts, job.footer())
    return counts


def reject_rows(reject: Reject, job: Job) -> tuple[str, list[Row]]:
    """A reject as the row of its table, under its path."""
    row = {
        "image_id": reject.id,
        "source_uri": storage.join(job.images_root, reject.path),
        "stage": reject.stage,
        "code": reject.code,
        "message": reject.message,
        "source_sha256": reject.sha256,
        "run_id": job.run_id,
    }
    return reject.path, [row]


def main(arguments: Sequence[str]) -> str:
    """The command line; returns the output folder."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m beam.infer",
        description="Images to Parquet tables of masks and class statistics. "
        "Beam's own options are taken too.",
    )
    parser.add_argument("--model", required=True, help="models:/name@alias or a .keras file")
    parser.add_argument("--source", help="folder or URI of PNGs")
    parser.add_argument("--dataset", help="folder that beam.ingest published")
    parser.add_argument("--output", required=True, help="root folder of the tables")
    parser.add_argument(
        "--tracking_uri", default=TRACKING_URI, help=f"MLflow store (default: {TRACKING_URI})"
    )
    parser.add_argument("--flow_run_id", help="noted in the table of runs")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="predict only images that this model version has not predicted yet",
    )
    parser.add_argument(
        "--retry_rejects",
        action="store_true",
        help="look again at rejects whose files have not changed",
    )
    add_config(parser, InferConfig)
    args, beam_arguments = parser.parse_known_args(arguments)
    return str(
        run(
            args.model,
            args.source,
            args.dataset,
            args.output,
            config_from(InferConfig, args),
            args.tracking_uri,
            args.flow_run_id,
            pipeline_options(beam_arguments),
            resume=args.resume,
            retry_rejects=args.retry_rejects,
        )
    )


class _Describe(CountingDoFn):
    """Turns predictions into rows, and what was not predicted into rejects."""

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
                "predict",
                element.code,
                element.message,
                picture.image_sha256,
            )
            yield beam.pvalue.TaggedOutput(REJECTS, reject)
            return
        self.counters.add("predicted")
        yield describe(element, self._job.model, self._job.run_id)


if __name__ == "__main__":
    # Workers unpickle functions by module name, and theirs is never __main__.
    from beam import infer  # noqa: PLW0406

    sys.exit(run_main(infer.main))
