"""Runs the pipelines of both jobs: Beam's options with our defaults, and readable errors."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.fn_runner import ExtendedProvisionInfo
from apache_beam.runners.runner import PipelineRunner
from apache_beam.transforms.environments import SubprocessSDKEnvironment
from google.protobuf.struct_pb2 import Struct

from beam import tools
from beam.runners.boot import process_environment
from runtime.child_processes import PARENT
from runtime.errors import MENDABLE_ERRNOS, UnavailableError, UserError
from runtime.log_filters import WithoutTracebacks

LOCAL_RUNNER = "FnApiRunner"
FLINK_RUNNER = "FlinkRunner"
SPARK_RUNNER = "SparkRunner"
_STEP = re.compile(r" \[while running '[^']*'\].*")
_USER_ERROR, _UNAVAILABLE = (
    re.compile(rf"{re.escape(error.__module__)}\.{error.__name__}: (.+)")
    for error in (UserError, UnavailableError)
)
_INVALID = re.compile(r"ValueError: Pipeline has validations errors: \s*(.+)")
_OS_ERROR = re.compile(
    rf"(?:OSError|PermissionError): \[Errno (?:{'|'.join(map(str, MENDABLE_ERRNOS))})\] (.+)"
)


def pipeline_options(arguments: Sequence[str]) -> PipelineOptions:
    """Parses Beam's options; if no runner is named, FnApiRunner runs on all cores.

    ``DirectRunner`` is not the default because it first tries to download another runner.

    Raises:
        UserError: neither the job nor Beam knows an option, or the runner's engine cannot be used.
    """
    given = list(arguments)
    logging.getLogger("apache_beam.options").setLevel(logging.ERROR)
    runner = _runner_name(given)
    given.append(f"--runner={runner}")
    if runner == FLINK_RUNNER:
        # The import declares Flink's additional options.
        from beam.runners import flink
    options = _parsed(given)
    _check_names(given, options)
    if runner == FLINK_RUNNER:
        return PipelineOptions([*given, *flink.defaults(options, given)])
    if runner == SPARK_RUNNER:
        return PipelineOptions([*given, *_spark_defaults(given)])
    if runner == LOCAL_RUNNER:
        return PipelineOptions([*given, *_local_defaults(options, given)])
    return options


def is_local(options: PipelineOptions) -> bool:
    """Whether all workers are processes of this machine, which see its temporary files."""
    return bool(options.view_as(StandardOptions).runner == LOCAL_RUNNER)


def processes_of(options: PipelineOptions) -> int:
    """Number of worker processes on this machine; 0 if they are on others."""
    if not is_local(options):
        return 0
    # 0 means one worker per core.
    return int(options.view_as(DirectOptions).direct_num_workers) or len(os.sched_getaffinity(0))


def _runner_name(given: Sequence[str]) -> str:
    """The runner's name as Beam spells it; Beam ignores case and a missing ``Runner`` suffix."""
    named: str | None = _parsed(given).view_as(StandardOptions).runner
    if named is None or "." in named:
        return named or LOCAL_RUNNER
    known = {name.lower(): name for name in StandardOptions.KNOWN_RUNNER_NAMES}
    wanted = named.lower()
    if found := known.get(wanted) or known.get(f"{wanted}runner"):
        return str(found)
    raise UserError(f"--runner={named}: expected one of {', '.join(sorted(known.values()))}")


def _parsed(given: Sequence[str]) -> PipelineOptions:
    """Parses Beam's options; by itself, Beam prints its usage and exits on a bad value."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options = PipelineOptions(list(given))
            options.get_all_options()
    except SystemExit as error:
        reason = said.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise UserError(f"Beam's options: {reason}") from error
    return options


def _local_defaults(options: PipelineOptions, given: Sequence[str]) -> list[str]:
    workers = options.view_as(DirectOptions).direct_num_workers
    if workers < 0:
        raise UserError(f"--direct_num_workers={workers}: expected 0 (one worker a core) or more")
    defaults = []
    if not any(one.startswith("--direct_running_mode") for one in given):
        defaults.append("--direct_running_mode=multi_processing")
    if not any(one.startswith("--direct_num_workers") for one in given):
        defaults.append(f"--direct_num_workers={len(os.sched_getaffinity(0))}")
    return defaults


def _spark_defaults(given: Sequence[str]) -> list[str]:
    """The job server that ``beam.tools`` keeps, and processes of this installation as workers."""
    defaults = []
    if not any(one.startswith("--spark_job_server_jar") for one in given):
        tools.java()
        defaults.append(f"--spark_job_server_jar={tools.spark_job_server()}")
    if not any(one.startswith("--environment_type") for one in given):
        command, variables = process_environment()
        config = json.dumps({"command": command, "env": variables})
        # Otherwise Beam lists all installed packages for a log that nobody reads.
        quiet = "--experiments=disable_logging_submission_environment"
        defaults += ["--environment_type=PROCESS", f"--environment_config={config}", quiet]
    return defaults


def _check_names(given: Sequence[str], options: PipelineOptions) -> None:
    known = set(options.get_all_options())
    unknown = set(options.get_all_options(retain_unknown_options=True)) - known
    takes_value = False
    for one in given:
        name, _, value = one.partition("=")
        if not name.startswith("--"):
            if not takes_value:
                raise UserError(f"unknown argument {one!r}; quote values that contain spaces")
            takes_value = False
            continue
        if name[2:].replace("-", "_") in unknown:
            raise UserError(
                f"unknown option {name}; --help lists the job's options; Beam's are accepted too"
            )
        takes_value = not value


def run_pipeline(build: Callable[[beam.Pipeline], None], options: PipelineOptions) -> None:
    """Builds a pipeline and runs it to completion.

    Raises:
        UserError: a worker raised one or a file error that a user can fix, such as a full disk, or
            the options do not fit.
        UnavailableError: a store that a worker needs does not answer.
    """
    # The runner logs a worker's exception before raising it here.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    logging.getLogger().addFilter(_is_worth_saying)
    direct = options.view_as(DirectOptions)
    mode = direct.direct_running_mode
    try:
        with (
            contextlib.redirect_stderr(cast(Any, WithoutTracebacks(sys.stderr))),
            _silent_threads() if is_local(options) else _sigterm_interrupts(),
            beam.Pipeline(_runner(options), options) as root,
        ):
            build(root)
    except Exception as error:
        # A worker's exception arrives as text inside a RuntimeError that the runner raises. Steps
        # that run in this process raise the exception itself, with the step's name appended.
        text = "".join(traceback.format_exception_only(error))
        if away := _UNAVAILABLE.search(text):
            raise UnavailableError(_said(away)) from error
        mistake = _mistake(text)
        if mistake is None:
            raise
        raise UserError(mistake) from error
    finally:
        # Options may serve several pipelines, and _runner has changed this one.
        direct.direct_running_mode = mode


@contextlib.contextmanager
def _silent_threads() -> Iterator[None]:
    """Drops the tracebacks of the runner's threads when a worker ends: its error is raised, too."""
    before = threading.excepthook
    threading.excepthook = lambda _: None
    try:
        yield
    finally:
        threading.excepthook = before


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Turns SIGTERM, with which a flow stops a job, into KeyboardInterrupt.

    It lets the runner end what it has started elsewhere: a job on Flink, or Beam's job server in
    Java, which is stopped when Python exits. Local workers need no help.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_worth_saying(record: logging.LogRecord) -> bool:
    """False for the warning that RunInference logs if PyTorch is not installed."""
    return not record.getMessage().startswith("Resource module is not available")


def _mistake(text: str) -> str | None:
    """Extracts the message of an error that the user can fix from an exception's text."""
    found = _USER_ERROR.search(text) or _OS_ERROR.search(text) or _INVALID.search(text)
    return _said(found) if found else None


def _said(found: re.Match[str]) -> str:
    return _STEP.sub("", found[1]).strip().removesuffix("\\n")


def _runner(options: PipelineOptions) -> PipelineRunner | str:
    """The runner that the options name; FnApiRunner gets worker processes that start faster."""
    name: str = options.view_as(StandardOptions).runner
    if name == FLINK_RUNNER:
        from beam.runners.flink import FlinkRunner

        return FlinkRunner(is_permanent=lambda text: _mistake(text) is not None)
    direct = options.view_as(DirectOptions)
    if name != LOCAL_RUNNER or direct.direct_running_mode != "multi_processing":
        return name
    # In the mode of that name, the runner would start Beam's own worker instead of ours.
    direct.direct_running_mode = "in_memory"
    quiet = Struct()
    quiet["default_sdk_harness_log_level"] = "ERROR"
    provision = beam_provision_api_pb2.ProvisionInfo(pipeline_options=quiet)
    return FnApiRunner(
        SubprocessSDKEnvironment.from_command_string(
            f"exec env {PARENT}={os.getpid()} {shlex.quote(sys.executable)} -m beam.runners.worker"
        ),
        provision_info=ExtendedProvisionInfo(provision),
    )
