"""What the command lines of both jobs have in common; Beam is imported only if it is needed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

from beam.runners import local_workers
from runtime.command_line import Config, JobParser, add_config, config_from
from runtime.imports import UNUSED_BY_BEAM, import_quickly
from runtime.processor import available_cores


class Workers(NamedTuple):
    """Where a job's workers run.

    Attributes:
        options: Beam's ``PipelineOptions``; None for the defaults, all cores of this machine.
        processes: number of workers on this machine; 0 if they are on others.
        forks: whether they are forked, as ``local_workers`` does.
    """

    options: Any
    processes: int
    forks: bool

    def import_graph(self, module: str) -> None:
        """Imports the module of a job's graph, and Beam with it, while the workers do the same."""
        if self.forks:
            local_workers.prepare(module)
        import_quickly(module, *UNUSED_BY_BEAM)


def job_parser(job: str, description: str) -> JobParser:
    """The parser of ``python -m beam.<job>``, without the job's parameters."""
    return JobParser(
        prog=f"python -m beam.{job}",
        description=f"{description} Also accepts Beam's own options, and @file to read arguments "
        "from a file.",
    )


def parse_job(
    parser: JobParser, config: type[Config], arguments: Sequence[str]
) -> tuple[argparse.Namespace, Config, Workers]:
    """Parses a job's arguments, its parameters among them, and Beam's options.

    Raises:
        UserError: an argument is unknown, or its value cannot be used.
    """
    add_config(parser, config)
    args, beam_arguments = parser.parse_known_args(arguments)
    parameters = config_from(config, args)
    if not beam_arguments:
        return args, parameters, Workers(None, available_cores(), forks=True)
    # Parsed now, so that a wrong option ends the command before it lists the source.
    import_quickly("beam.runners.run", *UNUSED_BY_BEAM)
    from beam.runners.run import forks_workers, pipeline_options, processes_of

    options = pipeline_options(beam_arguments)
    return args, parameters, Workers(options, processes_of(options), forks_workers(options))
