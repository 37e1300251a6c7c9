"""Images to Parquet tables of masks and class statistics: ``python -m beam.infer``.

The last line of standard output is the output folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.ml.inference.base import RunInference
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions

from beam import runs, storage
from beam.evaluation import SumMatrices, confusion_rows, matrices
from beam.listing import UNPAIRED, ListPairs
from beam.model_uri import ResolvedModel, resolve_model
from beam.pairing import Pair, Reject
from beam.parquet import WriteTable
from beam.pipeline import pipeline_options, run_pipeline, say
from beam.predict import (
    Picture,
    Prediction,
    UNetHandler,
    describe,
    read_picture,
    read_shard,
    read_truth,
)
from beam.progress import CountingDoFn, watched
from beam.versions import survey
from schemas.cli import add_config, config_from, run_main
from schemas.config import InferConfig
from schemas.errors import RejectError, UserError
from schemas.layout import SPLITS, TRACKING_URI, dataset_source_name, folder_source_name
from schemas.manifest import Manifest, load_manifest
from schemas.prediction import (
    CLASS_STATS,
    CONFUSION,
    MASKS,
    PREDICTION_REJECTS,
    SCHEMA_VERSION,
    with_footer,
)

Row = dict[str, Any]

REJECTS = "rejects"


@dataclass(frozen=True)
class Job:
    """One inference job.

    Attributes:
        source: the dataset's folder, or the root of the raw PNGs.
        manifest: of the dataset; None for raw PNGs.
        source_name: in the tables' partitions.
        loose: whether every PNG is an image, for a source without camera folders.
        images: how many there are to read, which decides the number of files.
        run_id: hash of model, source, configuration and the tables' schema version: the same job
            has the same rows.
    """

    model: ResolvedModel
    config: InferConfig
    source: str
    manifest: Manifest | None
    source_name: str
    loose: bool
    images: int
    run_id: str

    def footer(self) -> dict[str, str | None]:
        """Facts for the footer of every file."""
        return {
            "run_id": self.run_id,
            "model_uri": self.model.uri,
            "model_sha256": self.model.sha256,
            "mlflow_run_id": self.model.run_id,
            "dataset_fingerprint": self.manifest.fingerprint if self.manifest else None,
            "training_fingerprint": self.model.fingerprint,
            "taxonomy": self.model.taxonomy.name,
            "taxonomy_sha256": self.model.taxonomy.sha256,
        }


def build(root: beam.Pipeline, job: Job, staging: Path, threads: int) -> None:
    """The graph, from the source to the staged tables."""
    read = (
        root | "ReadDataset" >> ReadDataset(job)
        if job.manifest
        else (root | "ReadPngs" >> ReadPngs(job, str(staging / "progress")))
    )
    described = (
        read["pictures"]
        | "Predict" >> RunInference(UNetHandler(job.model, job.config.batch_size, threads))
        | "Describe" >> beam.ParDo(_Describe(job, str(staging / "progress")))
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
        read[REJECTS]
        | "RejectRows" >> beam.Map(lambda reject: reject_rows(reject, job))
        | "WriteRejects" >> table("_rejects", PREDICTION_REJECTS, 1)
    )


@dataclass
class ReadDataset(beam.PTransform):
    """The records of a dataset's shards, with their truth."""

    job: Job

    def expand(self, root: beam.pvalue.PBegin) -> dict[str, beam.PCollection[Any]]:
        """The graph: list shards, spread them, read their records."""
        job = self.job
        assert job.manifest is not None
        splits = SPLITS if job.config.split == "all" else (job.config.split,)
        shards = [(s.split, s.name) for s in job.manifest.shards if s.split in splits]
        pictures = (
            root
            | "Shards" >> beam.Create(shards, reshuffle=True)
            | "ReadShard"
            >> beam.FlatMapTuple(lambda split, name: read_shard(job.source, split, name, job.model))
        )
        return {"pictures": pictures, REJECTS: root | "NoRejects" >> beam.Create([])}


@dataclass
class ReadPngs(beam.PTransform):
    """The images below a folder, with the truth of those that have a mask beside them."""

    job: Job
    progress: str

    def expand(self, root: beam.pvalue.PBegin) -> dict[str, beam.PCollection[Any]]:
        """The graph: list, pair, read."""
        job = self.job
        listed = root | "ListPairs" >> ListPairs(
            job.source, "infer", self.progress, need_mask=False, loose=job.loose
        )
        read = listed["pairs"] | "ReadPng" >> beam.ParDo(_ReadPng(job, self.progress)).with_outputs(
            REJECTS, main="pictures"
        )
        rejects = (read[REJECTS], listed[UNPAIRED]) | "AllRejects" >> beam.Flatten()
        return {"pictures": read.pictures, REJECTS: rejects}


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
    job = plan(model, source, dataset, config, tracking_uri)
    partition = runs.partition_of(job.model, job.source_name)
    if runs.is_published(root, partition, job.run_id):
        say(f"nothing has changed: run {job.run_id} is published, all checksums verified")
        return root
    runs.check_source(root, partition, job.source)
    options = options or pipeline_options([])
    cores = len(os.sched_getaffinity(0))
    # 0 workers stand for one a core.
    threads = max(1, cores // (options.view_as(DirectOptions).direct_num_workers or cores))
    with storage.staging(root) as staging:
        for name in runs.TABLES:
            (staging / name).mkdir()
        with watched("infer", staging / "progress", job.images, "images"):
            run_pipeline(lambda pipeline: build(pipeline, job, staging, threads), options)
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


def plan(
    model: str, source: str | None, dataset: str | None, config: InferConfig, tracking_uri: str
) -> Job:
    """Everything about a job that is known before it runs.

    Raises:
        UserError: the model or the input cannot be used, or they do not fit each other.
    """
    if (source is None) == (dataset is None):
        raise UserError("expected either --source or --dataset")
    manifest = None
    loose = False
    if dataset is not None:
        place = str(Path(dataset).absolute())
        manifest = load_manifest(place)
        splits = SPLITS if config.split == "all" else (config.split,)
        images = sum(manifest.splits[split].records for split in splits)
        identity = manifest.fingerprint
        name = dataset_source_name(manifest.name, identity, config.split)
        if images == 0:
            raise UserError(f"dataset {dataset!r} has no record in split {config.split}")
    else:
        place = storage.absolute(str(source))
        storage.require_folder(place, "source")
        found = survey(place)
        loose = not found.images
        images = found.images or found.loose_pngs
        identity, name = found.digest, folder_source_name(place)
        if images == 0:
            raise UserError(f"source {source!r} holds no PNG image")
    resolved = resolve_model(model, config, tracking_uri)
    if manifest is not None and manifest.taxonomy_sha256 != resolved.taxonomy.sha256:
        raise UserError(
            f"model {model!r} predicts taxonomy {resolved.taxonomy.name}, but dataset {dataset!r} "
            f"holds {manifest.taxonomy.name}; their classes differ"
        )
    parts = (
        str(SCHEMA_VERSION),
        resolved.sha256,
        resolved.taxonomy.sha256,
        place,
        identity,
        config.sha256(),
    )
    return Job(
        model=resolved,
        config=config,
        source=place,
        manifest=manifest,
        source_name=config.source_name or name,
        loose=loose,
        images=images,
        run_id=hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16],
    )


def reject_rows(reject: Reject, job: Job) -> tuple[str, list[Row]]:
    """A reject as the row of its table, under its path."""
    row = {
        "image_id": reject.id,
        "source_uri": storage.join(job.source, reject.path),
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


class _ReadPng(CountingDoFn):
    """Reads the image of a pair and, where there is one, its mask."""

    def __init__(self, job: Job, progress: str) -> None:
        super().__init__("infer", progress)
        self._job = job

    def process(self, element: tuple[str, Pair]) -> Iterator[Picture | beam.pvalue.TaggedOutput]:
        job, (_, pair) = self._job, element
        bound = job.config.max_pixels
        try:
            picture = read_picture(pair, job.source, job.model, bound)
        except RejectError as error:
            yield self._reject(pair.id, pair.image.path, "read", error)
            return
        truth = None
        try:
            truth = read_truth(pair, picture, job.source, job.model, bound)
        except RejectError as error:
            assert pair.mask is not None
            yield self._reject(pair.id, pair.mask.path, runs.TRUTH_STAGE, error)
        yield dataclasses.replace(picture, truth=truth)

    def _reject(
        self, image_id: str, path: str, stage: str, error: RejectError
    ) -> beam.pvalue.TaggedOutput:
        self.counters.add(f"rejected.{error.code}")
        reject = Reject(image_id, path, stage, error.code, error.message)
        return beam.pvalue.TaggedOutput(REJECTS, reject)


class _Describe(CountingDoFn):
    """Turns predictions into rows, keyed by image id."""

    def __init__(self, job: Job, progress: str) -> None:
        super().__init__("infer", progress)
        self._job = job

    def process(self, element: Prediction) -> Iterator[tuple[str, Row, list[Row]]]:
        mask_row, class_rows = describe(element, self._job.model, self._job.run_id)
        self.counters.add("predicted")
        yield element.picture.image_id, mask_row, class_rows


if __name__ == "__main__":
    # Workers unpickle functions by module name, and theirs is never __main__.
    from beam import infer  # noqa: PLW0406

    sys.exit(run_main(infer.main))
