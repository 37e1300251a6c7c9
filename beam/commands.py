"""The command lines of both jobs: Beam, whose import takes a second, only if there is work."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from beam import runs
from beam.drift import write_drift
from beam.plan import Job, plan
from beam.publish import partition_lock
from beam.staging import make_output
from beam.versions import look, unchanged
from schemas.cli import JobParser, add_config, add_tracking_uri, config_from
from schemas.config import InferConfig, IngestConfig

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


def ingest(arguments: Sequence[str]) -> str:
    """``python -m beam.ingest``: returns the published folder."""
    parser = JobParser(
        prog="python -m beam.ingest",
        description="Raw PNG pairs to a published TFRecord dataset. "
        "Also accepts Beam's own options, and @file to read arguments from a file.",
    )
    parser.add_argument("--source", required=True, help="folder, archive or URI of the raw pairs")
    parser.add_argument("--output", required=True, help="root folder or URI of the datasets")
    add_config(parser, IngestConfig)
    args, beam_arguments = parser.parse_known_args(arguments)
    config = config_from(IngestConfig, args)
    # Beam alone knows its options, and refuses those that are wrong.
    options = _options(beam_arguments) if beam_arguments else None
    with tempfile.TemporaryDirectory(prefix="lyft-listing-") as listing:
        found = look(args.source, args.output, config, listing)
        if published := unchanged(found):
            return published
        from beam.ingest import publish_version

        return publish_version(found, options or _options([]))


def infer(arguments: Sequence[str]) -> str:
    """``python -m beam.infer``: returns the output folder."""
    parser = JobParser(
        prog="python -m beam.infer",
        description="Images to Parquet tables of masks and class statistics. "
        "Also accepts Beam's own options, and @file to read arguments from a file.",
    )
    parser.add_argument("--model", required=True, help="models:/name@alias or a .keras file")
    parser.add_argument("--source", help="folder, archive or URI of images")
    parser.add_argument("--dataset", help="folder or URI of a dataset that beam.ingest published")
    parser.add_argument("--output", required=True, help="root folder or URI of the tables")
    add_tracking_uri(parser)
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
    parser.add_argument(
        "--drift",
        help="file that takes, as JSON, how the predictions compare with the model's validation",
    )
    add_config(parser, InferConfig)
    args, beam_arguments = parser.parse_known_args(arguments)
    config = config_from(InferConfig, args)
    options, processes = None, len(os.sched_getaffinity(0))
    if beam_arguments:
        from beam.pipeline import processes_of

        options = _options(beam_arguments)
        processes = processes_of(options)
    root = make_output(args.output)
    places = args.source, args.dataset
    with tempfile.TemporaryDirectory(prefix="lyft-model-") as scratch:
        job = plan(args.model, *places, config, args.tracking_uri, processes, scratch)
        if not (args.resume and not args.retry_rejects and _is_published(job, root)):
            from beam.infer import predict

            predict(
                job,
                root,
                options or _options([]),
                args.flow_run_id,
                resume=args.resume,
                retry_rejects=args.retry_rejects,
            )
        if args.drift:
            write_drift(job, root, Path(args.drift))
    return root


def _is_published(job: Job, root: str) -> bool:
    partition = runs.partition_of(job.model, job.source_name)
    with partition_lock(root, partition):
        return runs.is_unchanged(root, partition, job.run_id)


def _options(arguments: Sequence[str]) -> PipelineOptions:
    from beam.pipeline import pipeline_options

    return pipeline_options(arguments)
