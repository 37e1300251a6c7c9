"""Command line of the inference job; imports Beam only if there is work."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from beam.infer import runs
from beam.infer.drift import write_drift
from beam.infer.plan import Job, plan_job
from beam.infer.publish import partition_lock
from beam.shared.job_command import job_parser, parse_job
from beam.shared.staging import make_output
from runtime.command_line import add_tracking_uri, make_folder_of, run_main
from schemas.config import InferConfig


def main(arguments: Sequence[str]) -> str:
    """``python -m beam.infer``: returns the output folder."""
    parser = job_parser("infer", "Images to Parquet tables of masks and class statistics.")
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
    args, config, workers = parse_job(parser, InferConfig, arguments)
    root = make_output(args.output)
    if args.drift:
        make_folder_of(args.drift, "--drift")
    places = args.source, args.dataset
    with tempfile.TemporaryDirectory(prefix="lyft-model-") as scratch:
        job = plan_job(args.model, *places, config, args.tracking_uri, workers.processes, scratch)
        if not (args.resume and not args.retry_rejects and _is_published(job, root)):
            workers.import_graph("beam.infer.pipeline")
            from beam.infer.pipeline import predict

            predict(
                job,
                root,
                workers.options,
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


if __name__ == "__main__":
    sys.exit(run_main(main))
