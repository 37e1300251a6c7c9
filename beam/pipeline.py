"""How both jobs run: Beam's options with our defaults, and errors a user can read."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.fn_runner import ExtendedProvisionInfo
from apache_beam.transforms.environments import SubprocessSDKEnvironment
from google.protobuf.struct_pb2 import Struct

from schemas.errors import UserError
from schemas.quiet import WithoutTracebacks

LOCAL_RUNNER = "FnApiRunner"
_STEP = re.compile(r" \[while running '[^']*'\].*")
_USER_ERROR = re.compile(r"schemas\.errors\.UserError: (.+)")
_MENDABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
_OS_ERROR = re.compile(
    rf"(?:OSError|PermissionError): \[Errno (?:{'|'.join(map(str, _MENDABLE))})\] (.+)"
)


def pipeline_options(arguments: Sequence[str]) -> PipelineOptions:
    """Beam's options from a command line; without a runner, FnApiRunner on all cores.

    ``DirectRunner`` is named away from: it first tries to fetch another runner from the net.

    Raises:
        UserError: an option is unknown to us and to Beam.
    """
    given = list(arguments)
    logging.getLogger("apache_beam.options").setLevel(logging.ERROR)
    options = PipelineOptions(given)
    runner = options.view_as(StandardOptions).runner
    if runner in (None, LOCAL_RUNNER):
        defaults = [f"--runner={LOCAL_RUNNER}"]
        if not any(one.startswith("--direct_running_mode") for one in given):
            defaults.append("--direct_running_mode=multi_processing")
        if not any(one.startswith("--direct_num_workers") for one in given):
            defaults.append(f"--direct_num_workers={len(os.sched_getaffinity(0))}")
        options = PipelineOptions([*given, *defaults])
    known = set(options.get_all_options())
    takes_value = False
    for one in given:
        name, _, value = one.partition("=")
        if not name.startswith("--"):
            if not takes_value:
                raise UserError(f"unknown argument {one!r}; a value with spaces wants quotes")
            takes_value = False
            continue
        if name[2:].replace("-", "_") not in known:
            raise UserError(f"unknown option {name}; --help lists the job's, Beam has its own")
        takes_value = not value
    return options


def run_pipeline(build: Callable[[beam.Pipeline], None], options: PipelineOptions) -> None:
    """Builds and runs a pipeline to its end.

    Raises:
        UserError: a worker met a mistake of the user's, or the disk is full.
    """
    # The runner repeats a worker's exception in its log before it raises it here.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    logging.getLogger().addFilter(_is_worth_saying)
    try:
        with (
            contextlib.redirect_stderr(cast(Any, WithoutTracebacks(sys.stderr))),
            beam.Pipeline(_runner(options), options) as root,
        ):
            build(root)
    except Exception as error:
        # A worker's exception arrives as text inside a RuntimeError of the runner's.
        # Beam's own process raises the exception itself, with the step's name at its end.
        text = "".join(traceback.format_exception_only(error))
        found = _USER_ERROR.search(text) or _OS_ERROR.search(text)
        if found is None:
            raise
        raise UserError(_STEP.sub("", found[1]).strip().removesuffix("\\n")) from error


@contextlib.contextmanager
def disk_errors_are_mistakes() -> Iterator[None]:
    """Turns a full disk and missing rights into a mistake that the user can mend.

    Raises:
        UserError: in place of such an OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        raise UserError(f"{error.strerror or error}; nothing was published") from error


def _is_worth_saying(record: logging.LogRecord) -> bool:
    """False for what RunInference says wherever PyTorch is not installed."""
    return not record.getMessage().startswith("Resource module is not available")


def _runner(options: PipelineOptions) -> FnApiRunner | str:
    """The runner that the options name; FnApiRunner with worker processes that start fast."""
    name: str = options.view_as(StandardOptions).runner
    direct = options.view_as(DirectOptions)
    if name != LOCAL_RUNNER or direct.direct_running_mode != "multi_processing":
        return name
    # The runner would put Beam's own worker in place of ours in the mode that is named so.
    direct.direct_running_mode = "in_memory"
    quiet = Struct()
    quiet["default_sdk_harness_log_level"] = "ERROR"
    provision = beam_provision_api_pb2.ProvisionInfo(pipeline_options=quiet)
    return FnApiRunner(
        SubprocessSDKEnvironment.from_command_string(
            f"{shlex.quote(sys.executable)} -m beam.worker"
        ),
        provision_info=ExtendedProvisionInfo(provision),
    )


def say(text: str) -> None:
    """A line for the person who watches; standard output is for the result alone."""
    print(text, file=sys.stderr, flush=True)
