"""Command line of the ingest job; imports Beam only if there is work."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence

from beam.ingest.incremental import find_unchanged, prepare
from beam.shared.job_command import job_parser, parse_job
from runtime.command_line import run_main
from schemas.config import IngestConfig


def main(arguments: Sequence[str]) -> str:
    """``python -m beam.ingest``: returns the published folder."""
    parser = job_parser("ingest", "Raw PNG pairs to a published TFRecord dataset.")
    parser.add_argument("--source", required=True, help="folder, archive or URI of the raw pairs")
    parser.add_argument("--output", required=True, help="root folder or URI of the datasets")
    args, config, workers = parse_job(parser, IngestConfig, arguments)
    with tempfile.TemporaryDirectory(prefix="lyft-listing-") as listing:
        job = prepare(args.source, args.output, config, listing)
        if published := find_unchanged(job):
            return published
        workers.import_graph("beam.ingest.pipeline")
        from beam.ingest.pipeline import publish_version

        return publish_version(job, workers.options)


if __name__ == "__main__":
    sys.exit(run_main(main))
