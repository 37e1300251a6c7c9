"""Runs a Beam pipeline: options with our defaults, choice of the runner, one-line errors."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
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
from google.protobuf.struct_pb2 import Struct

from beam import tools
from beam.runners.boot import process_environment
from beam.runners.fork_environment import ForkEnvironment
from beam.runners.local_workers import worker_parent
from runtime.errors import USER_FIXABLE_ERRNOS, UnavailableError, UserError
from runtime.log_filters import TracebackFilter
from runtime.processor import available_cores

LOCAL_RUNNER = "FnApiRunner"
FLINK_RUNNER = "FlinkRunner"
SPARK_RUNNER = "SparkRunner"
_STEP_SUFFIX = re.compile(r" \[while running '[^']*'\].*")
_USER_ERROR, _UNAVAILABLE = (
    re.compile(rf"{re.escape(error.__module__)}\.{error.__name__}: (.+)")
    for error in (UserError, UnavailableError)
)
_INVALID = re.compile(r"ValueError: Pipeline has validations errors: \s*(.+)")
_OS_ERROR = re.compile(
    rf"(?:OSError|PermissionError): \[Errno (?:{'|'.join(map(str, USER_FIXABLE_ERRNOS))})\] (.+)"
)


def pipeline_options(arguments: Sequence[str]) -> PipelineOptions:
    """Parses Beam's options; the default is FnApiRunner on all cores.

    ``DirectRunner`` is not the default because it first tries to download another runner.

    Raises:
        UserError: an option is unknown to Beam, or the runner's engine cannot be used.
    """
    given = list(arguments)
    logging.getLogger("apache_beam.options").setLevel(logging.ERROR)
    runner = _runner_name(given)
    given.append(f"--runner={runner}")
    if runner == FLINK_RUNNER:
        # The import declares Flink's additional options.
        from beam.runners import flink
    options = _parse(given)
    _check_names(given, options)
    if runner == FLINK_RUNNER:
        return PipelineOptions([*given, *flink.defaults(options, given)])
    if runner == SPARK_RUNNER:
        return PipelineOptions([*given, *_spark_defaults(given)])
    if runner == LOCAL_RUNNER:
        return PipelineOptions([*given, *_local_defaults(options, given)])
    return options


def is_local(options: PipelineOptions) -> bool:
    """Whether all workers run on this machine, and so see its temporary files."""
    return bool(options.view_as(StandardOptions).runner == LOCAL_RUNNER)


def forks_workers(options: PipelineOptions) -> bool:
    """Whether the workers are processes of this machine, forked as in ``local_workers``."""
    mode = options.view_as(DirectOptions).direct_running_mode
    return is_local(options) and bool(mode == "multi_processing")


def processes_of(options: PipelineOptions) -> int:
    """Number of worker processes on this machine; 0 if they are on others."""
    if not is_local(options):
        return 0
    return int(options.view_as(DirectOptions).direct_num_workers)


def _runner_name(given: Sequence[str]) -> str:
    """The runner's name as Beam spells it; Beam ignores case and a missing ``Runner`` suffix."""
    named: str | None = _parse(given).view_as(StandardOptions).runner
    if named is None or "." in named:
        return named or LOCAL_RUNNER
    known = {name.lower(): str(name) for name in StandardOptions.KNOWN_RUNNER_NAMES}
    if name := known.get(named.lower()) or known.get(f"{named.lower()}runner"):
        return name
    raise UserError(f"--runner={named}: expected one of {', '.join(sorted(known.values()))}")


def _parse(given: Sequence[str]) -> PipelineOptions:
    """Parses Beam's options; raises UserError where Beam would print its usage and exit."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            options = PipelineOptions(list(given))
            options.get_all_options()
    except SystemExit as error:
        reason = stderr.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise UserError(f"Beam's options: {reason}") from error
    return options


def _local_defaults(options: PipelineOptions, given: Sequence[str]) -> list[str]:
    workers = options.view_as(DirectOptions).direct_num_workers
    if workers < 0:
        raise UserError(f"--direct_num_workers={workers}: expected 0 (one worker a core) or more")
    defaults = []
    if not _is_given("--direct_running_mode", given):
        defaults.append("--direct_running_mode=multi_processing")
    if workers == 0 or not _is_given("--direct_num_workers", given):
        defaults.append(f"--direct_num_workers={available_cores()}")
    return defaults


def _spark_defaults(given: Sequence[str]) -> list[str]:
    """The job server that ``beam.tools`` keeps, and processes of this installation as workers."""
    defaults = []
    if not _is_given("--spark_job_server_jar", given):
        tools.java()
        defaults.append(f"--spark_job_server_jar={tools.spark_job_server()}")
    if not _is_given("--environment_type", given):
        command, variables = process_environment()
        config = json.dumps({"command": command, "env": variables})
        # Saves a listing of all installed packages, which goes to a log that nobody reads.
        quiet = "--experiments=disable_logging_submission_environment"
        defaults += ["--environment_type=PROCESS", f"--environment_config={config}", quiet]
    return defaults


def _is_given(option: str, given: Sequence[str]) -> bool:
    return any(argument.startswith(option) for argument in given)


def _check_names(given: Sequence[str], options: PipelineOptions) -> None:
    known = set(options.get_all_options())
    unknown = set(options.get_all_options(retain_unknown_options=True)) - known
    takes_value = False
    for argument in given:
        name, _, value = argument.partition("=")
        if not name.startswith("--"):
            if not takes_value:
                raise UserError(f"unknown argument {argument!r}; quote values that contain spaces")
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
        UserError: a worker raised a UserError or a file error that a user can fix, such as a full
            disk, or the options do not fit.
        UnavailableError: a store that a worker needs does not answer.
    """
    # The runner logs a worker's exception before raising it here.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    logging.getLogger().addFilter(_is_not_about_pytorch)
    direct = options.view_as(DirectOptions)
    mode = direct.direct_running_mode
    try:
        with (
            contextlib.ExitStack() as workers,
            contextlib.redirect_stderr(cast(Any, TracebackFilter(sys.stderr))),
            _silent_threads() if is_local(options) else _sigterm_interrupts(),
            beam.Pipeline(_runner(options, workers), options) as root,
        ):
            build(root)
    except Exception as error:
        # A worker's exception arrives as text inside the runner's RuntimeError. Steps that run in
        # this process raise the exception itself, with the step's name appended.
        text = "".join(traceback.format_exception_only(error))
        if unavailable := _UNAVAILABLE.search(text):
            raise UnavailableError(_message(unavailable)) from error
        message = _user_error(text)
        if message is None:
            raise
        raise UserError(message) from error
    finally:
        # Options may serve several pipelines, and _runner has changed this option.
        direct.direct_running_mode = mode


@contextlib.contextmanager
def _silent_threads() -> Iterator[None]:
    """Drops the tracebacks of the runner's threads: the error of a worker is raised as well."""
    before = threading.excepthook
    threading.excepthook = lambda _: None
    try:
        yield
    finally:
        threading.excepthook = before


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Turns SIGTERM, with which a flow stops a job, into KeyboardInterrupt.

    So the runner can stop what it has started elsewhere: a job on Flink, or Beam's Java job server.
    Local workers end by themselves.
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


def _is_not_about_pytorch(record: logging.LogRecord) -> bool:
    """False for RunInference's warning that PyTorch is not installed."""
    return not record.getMessage().startswith("Resource module is not available")


def _user_error(text: str) -> str | None:
    """The message of an error that the user can fix, from an exception's text; None for others."""
    found = _USER_ERROR.search(text) or _OS_ERROR.search(text) or _INVALID.search(text)
    return _message(found) if found else None


def _message(error: re.Match[str]) -> str:
    return _STEP_SUFFIX.sub("", error[1]).strip().removesuffix("\\n")


def _runner(options: PipelineOptions, workers: contextlib.ExitStack) -> PipelineRunner | str:
    """The runner that the options name; ``workers`` keeps what starts FnApiRunner's processes."""
    name: str = options.view_as(StandardOptions).runner
    if name == FLINK_RUNNER:
        from beam.runners.flink import FlinkRunner

        return FlinkRunner(is_permanent=lambda text: _user_error(text) is not None)
    if not forks_workers(options):
        return name
    # In mode multi_processing, the runner would start Beam's own worker instead of ours.
    options.view_as(DirectOptions).direct_running_mode = "in_memory"
    quiet = Struct()
    quiet["default_sdk_harness_log_level"] = "ERROR"
    provision = beam_provision_api_pb2.ProvisionInfo(pipeline_options=quiet)
    return FnApiRunner(
        ForkEnvironment(workers.enter_context(worker_parent())),
        provision_info=ExtendedProvisionInfo(provision),
    )
