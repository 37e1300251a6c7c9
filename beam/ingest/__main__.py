"""Command line of the ingest job; imports Beam only if there is work."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence

from beam.ingest.incremental import find_unchanged, prepare
from beam.runners import local_workers
from runtime.command_line import JobParser, add_config, config_from, run_main
from runtime.imports import UNUSED_BY_BEAM, import_quickly
from schemas.config import IngestConfig


def main(arguments: Sequence[str]) -> str:
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
    # Parsed first, so that a wrong option ends the command before the source is listed.
    options, forks = None, True
    if beam_arguments:
        import_quickly("beam.runners.run", *UNUSED_BY_BEAM)
        from beam.runners.run import forks_workers, pipeline_options

        options = pipeline_options(beam_arguments)
        forks = forks_workers(options)
    with tempfile.TemporaryDirectory(prefix="lyft-listing-") as listing:
        job = prepare(args.source, args.output, config, listing)
        if published := find_unchanged(job):
            return published
        if forks:
            local_workers.prepare("beam.ingest.pipeline")
        import_quickly("beam.ingest.pipeline", *UNUSED_BY_BEAM)
        from beam.ingest.pipeline import publish_version

        return publish_version(job, options)


if __name__ == "__main__":
    sys.exit(run_main(main))
