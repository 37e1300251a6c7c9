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
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.ml.inference.base import RunInference
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions

from beam import runs, storage
from beam.evaluation import SumMatrices, confusion_rows, matrices
from beam.handler import UNetHandler
from beam.model_uri import with_graph
from beam.pairing import Reject
from beam.parquet import WriteTable
from beam.pictures import COUNT, PICTURES, REJECTS, ReadDataset, ReadPngs
from beam.pipeline import pipeline_options, run_pipeline, say
from beam.plan import Job, plan
from beam.predict import Prediction, Unpredicted, describe
from beam.progress import CountingDoFn, watched
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

Row = dict[str, Any]


def build(root: beam.Pipeline, job: Job, staging: Path) -> None:
    """The graph, from the source to the staged tables."""
    progress = str(staging / "progress")
    read = (
        root | "ReadDataset" >> ReadDataset(job, progress)
        if job.manifest
        else (root | "ReadPngs" >> ReadPngs(job, progress))
    )
    described, failed = (
        read[PICTURES]
        | "Predict" >> RunInference(UNetHandler(job.model, job.runtime))
        | "Describe" >> beam.ParDo(_Describe(job, progress)).with_outputs(REJECTS, main="rows")
    )

    def table(name: str, schema: pa.Schema, parts: int) -> WriteTable:
        return WriteTable(
            str(staging / name),
            with_footer(schema, **job.footer()),
            parts,
            job.config.row_group_mib << 20,
        )

    parts = -(-job.images // job.config.part_images)
    taxonomy = job.model.taxonomy
    _ = (
        described
        | "MaskRows" >> beam.MapTuple(lambda image_id, mask, _: (image_id, [mask]))
        | "WriteMasks" >> table("masks", MASKS, parts)
    )
    _ = (
        described
        | "ClassRows" >> beam.MapTuple(lambda image_id, _, classes: (image_id, classes))
        | "WriteClassStats" >> table("class_stats", CLASS_STATS, parts)
    )
    _ = (
        described
        | "Matrices" >> beam.FlatMapTuple(lambda _, mask, __: matrices(mask))
        | "SumMatrices" >> beam.CombinePerKey(SumMatrices(len(taxonomy)))
        | "ConfusionRows"
        >> beam.MapTuple(lambda split, sums: confusion_rows(split, sums, taxonomy, job.run_id))
        | "WriteConfusion" >> table("confusion", CONFUSION, 1)
    )
    _ = (
        (read[REJECTS], failed)
        | "AllRejects" >> beam.Flatten()
        | "RejectRows" >> beam.Map(lambda reject: reject_rows(reject, job))
        | "WriteRejects" >> table("_rejects", PREDICTION_REJECTS, 1)
    )
    _ = read[COUNT] | "NoteImagesRead" >> beam.Map(runs.note_images_read, str(staging))


def run(
    model: str,
    source: str | None,
    dataset: str | None,
    output: str,
    config: InferConfig,
    tracking_uri: str = TRACKING_URI,
    flow_run_id: str | None = None,
    options: PipelineOptions | None = None,
) -> Path:
    """Predicts a dataset or a folder of PNGs and publishes the tables.

    Args:
        model: MLflow URI or path of a ``.keras`` file.
        source: folder or URI of PNGs; exactly one of it and ``dataset``.
        dataset: folder of a published dataset.
        output: root of the tables.
        flow_run_id: noted in the table of runs.

    Returns:
        The output folder.

    Raises:
        UserError: the model or the input cannot be used, or no way to write.
    """
    started = datetime.now(UTC)
    root = storage.make_output(output)
    options = options or pipeline_options([])
    cores = len(os.sched_getaffinity(0))
    # 0 workers stand for one a core.
    processes = options.view_as(DirectOptions).direct_num_workers or cores
    job = plan(model, source, dataset, config, tracking_uri, processes)
    partition = runs.partition_of(job.model, job.source_name)
    if runs.is_published(root, partition, job.run_id):
        say(f"nothing has changed: run {job.run_id} is published, all checksums verified")
        return root
    runs.check_source(root, partition, job.source)
    with storage.staging(root) as staging:
        for name in runs.TABLES:
            (staging / name).mkdir()
        if job.runtime.engine == "openvino":
            job = replace(job, model=with_graph(job.model, staging / "openvino"))
        with watched("infer", staging / "progress", job.images, "images"):
            run_pipeline(lambda pipeline: build(pipeline, job, staging), options)
        counts = runs.count(staging)
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
        runs.write_classes(staging, job.model.taxonomy, job.run_id, job.footer())
        runs.write_run(staging, facts, job.footer())
        runs.publish(staging, root, partition)
    say(
        f"{counts['images_read']:,} images read, {counts['images_predicted']:,} predicted, "
        f"{counts['images_rejected']:,} rejected"
    )
    return root


def reject_rows(reject: Reject, job: Job) -> tuple[str, list[Row]]:
    """A reject as the row of its table, under its path."""
    row = {
        "image_id": reject.id,
        "source_uri": storage.join(job.images_root, reject.path),
        "stage": reject.stage,
        "code": reject.code,
        "message": reject.message,
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
        )
    )


class _Describe(CountingDoFn):
    """Turns predictions into rows, keyed by image id, and what was not predicted into rejects."""

    def __init__(self, job: Job, progress: str) -> None:
        super().__init__("infer", progress)
        self._job = job

    def process(
        self, element: Prediction | Unpredicted
    ) -> Iterator[tuple[str, Row, list[Row]] | beam.pvalue.TaggedOutput]:
        picture = element.picture
        if isinstance(element, Unpredicted):
            self.counters.add(f"rejected.{element.code}")
            reject = Reject(
                picture.image_id, picture.path, "predict", element.code, element.message
            )
            yield beam.pvalue.TaggedOutput(REJECTS, reject)
            return
        mask_row, class_rows = describe(element, self._job.model, self._job.run_id)
        self.counters.add("predicted")
        yield picture.image_id, mask_row, class_rows


if __name__ == "__main__":
    # Workers unpickle functions by module name, and theirs is never __main__.
    from beam import infer  # noqa: PLW0406

    sys.exit(run_main(infer.main))
