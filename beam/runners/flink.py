"""FlinkRunner: runs a pipeline as a batch job on a Flink cluster, through Flink's REST API.

Beam's own FlinkRunner starts a Java server for each job. With ``--flink_submit_uber_jar``, it
notices the job's end up to a minute late, sends cancellations to an address that does not exist,
and listens on all interfaces. Either way, a stopped driver leaves its job running.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
)
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.portable_runner import JobServiceHandle, PortableRunner
from apache_beam.runners.runner import PipelineResult, PipelineState
from apache_beam.transforms import environments
from google.protobuf import json_format

from beam import tools
from beam.runners.boot import process_environment
from beam.runners.flink_api import FlinkCluster
from runtime.errors import UserError

_POLL_S = 0.5
_ENDED = ("FINISHED", "FAILED", "CANCELED")
_WORKER_IDLE_MS = 3_000
"""Time after which an idle Python worker ends. It is less than Flink's restart delay, so that a
retry does not meet a worker that has died."""

_TRANSLATION_S = 30
"""How long a stopped driver waits for the JobManager to know a job that it is still translating."""

_MAIN_CLASS = "org.apache.beam.runners.flink.FlinkPipelineRunner"
_FOLDER_IN_JAR = "BEAM-PIPELINE"


class FlinkBatchOptions(PipelineOptions):
    """Options of Beam's Java runner that its Python side does not declare."""

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        parser.add_argument(
            "--object_reuse",
            default="true",
            help="pass elements between steps without copying them",
        )
        parser.add_argument(
            "--execution_mode_for_batch",
            default="BATCH_FORCED",
            choices=("BATCH_FORCED", "PIPELINED"),
            help="keep shuffled data on disk, so that a failure repeats only the lost work; "
            "or run all steps at once, so that a failure restarts the whole job",
        )


def defaults(options: PipelineOptions, given: Sequence[str]) -> list[str]:
    """Values for options that the user has not set, chosen to match the cluster.

    The parallelism is the cluster's default, or else the number of its slots. Each TaskManager gets
    one Python worker for each subtask of a step that it runs.

    Raises:
        UserError: no cluster is named, it does not answer, or it cannot run the job.
    """
    flink = options.view_as(FlinkRunnerOptions)
    if flink.flink_master.startswith("["):
        raise UserError("--runner=FlinkRunner: expected --flink_master=<host>:<port>, found none")
    cluster = FlinkCluster(flink.flink_master)
    expected, found = tools.FLINK.rpartition(".")[0], cluster.version()
    if not found.startswith(f"{expected}."):
        raise UserError(f"Flink at {cluster.url}: expected version {expected}, found {found}")
    task_managers, slots = cluster.size()
    if not task_managers:
        raise UserError(f"Flink at {cluster.url} has no TaskManager; start one")
    parallelism = flink.parallelism
    chosen = []
    if parallelism < 1:
        parallelism = cluster.default_parallelism() or slots
        chosen.append(f"--parallelism={parallelism}")
    if parallelism > slots:
        raise UserError(f"--parallelism={parallelism}: Flink at {cluster.url} has {slots} slots")
    workers = -(-parallelism // task_managers)
    for name, value in (
        ("sdk_worker_parallelism", workers),
        ("default_sdk_harness_log_level", "ERROR"),
        ("environment_cache_millis", _WORKER_IDLE_MS),
    ):
        if not any(argument.startswith(f"--{name}") for argument in given):
            chosen.append(f"--{name}={value}")
    return chosen


class FlinkRunner(PortableRunner):
    """Runs pipelines to completion.

    Args:
        is_permanent: whether a retry would fail as well, by the text of the error.
    """

    def __init__(self, is_permanent: Callable[[str], bool]) -> None:
        super().__init__()
        self._is_permanent = is_permanent

    def default_environment(self, options: PipelineOptions) -> environments.Environment:
        """The user's environment; by default, worker processes beside each TaskManager."""
        if options.view_as(PortableOptions).environment_type:
            return super().default_environment(options)
        command, variables = process_environment()
        return environments.ProcessEnvironment(
            command, env=variables, capabilities=environments.python_sdk_capabilities()
        )

    def run_portable_pipeline(
        self, pipeline: beam_runner_api_pb2.Pipeline, options: PipelineOptions
    ) -> PipelineResult:
        """Submits the job and waits for its end; cancels it on any exception.

        Raises:
            RuntimeError: the job has failed; the message is Flink's.
        """
        options.view_as(StandardOptions).runner = None
        flink = options.view_as(FlinkRunnerOptions)
        cluster = FlinkCluster(flink.flink_master)
        jar = flink.flink_job_server_jar or tools.flink_runner()
        # Inside the job, [auto] is the cluster it was submitted to.
        flink.flink_master = "[auto]"
        job = uuid.uuid4().hex
        with _uber_jar(Path(jar), self._pipeline_files(pipeline, options)) as file:
            try:
                uploaded = cluster.upload(file, f"{job}.jar")
                with _cancelled_on_error(cluster, job, _TRANSLATION_S):
                    cluster.run(uploaded, _MAIN_CLASS, job, flink.parallelism)
                with _cancelled_on_error(cluster, job):
                    self._wait(cluster, job)
            finally:
                # By name: after an interrupted upload, the jar's id is not known.
                with suppress(Exception):
                    cluster.delete(f"{job}.jar")
        return PipelineResult(PipelineState.DONE)

    def _pipeline_files(
        self, pipeline: beam_runner_api_pb2.Pipeline, options: PipelineOptions
    ) -> dict[str, str]:
        """Name and content of the files that Beam's main class reads from its jar."""
        optimized = self._optimize_pipeline(pipeline, options)
        encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
        return {
            f"{_FOLDER_IN_JAR}/pipeline-manifest.json": json.dumps({"defaultJobName": "job"}),
            f"{_FOLDER_IN_JAR}/job/pipeline.json": json_format.MessageToJson(optimized),
            f"{_FOLDER_IN_JAR}/job/pipeline-options.json": json_format.MessageToJson(encoded),
        }

    def _wait(self, cluster: FlinkCluster, job: str) -> None:
        state = ""
        while state not in _ENDED:
            time.sleep(_POLL_S)
            state = cluster.state(job)
            failure = cluster.failure(job)
            # Flink itself would retry a job that can only fail again.
            if state == "FAILED" or self._is_permanent(failure):
                raise RuntimeError(failure or "Flink names no reason")
        if state == "CANCELED":
            raise UserError(f"job {job} was cancelled on Flink's side; nothing was published")


@contextmanager
def _cancelled_on_error(cluster: FlinkCluster, job: str, wait_s: float = 0) -> Iterator[None]:
    """Cancels a job if the block fails; waits up to ``wait_s`` for Flink to know the job."""
    try:
        yield
    except BaseException as error:
        # A RuntimeError is Flink's answer: it is no longer translating the job.
        deadline = time.monotonic() + (0 if isinstance(error, RuntimeError) else wait_s)
        while not _is_cancelled(cluster, job) and time.monotonic() < deadline:
            time.sleep(1)
        raise


def _is_cancelled(cluster: FlinkCluster, job: str) -> bool:
    """Cancels a job; False if Flink does not know the job, or does not answer."""
    try:
        cluster.cancel(job)
    except Exception:  # noqa: BLE001 - the error to report is the one that ends the job
        with suppress(Exception):
            return cluster.state(job, retry=False) in _ENDED
        return False
    return True


@contextmanager
def _uber_jar(jar: Path, files: dict[str, str]) -> Iterator[IO[bytes]]:
    """A copy of a jar with files added, in an unnamed file, which cannot be left behind."""
    with tempfile.TemporaryFile() as copy:
        with jar.open("rb") as original:
            shutil.copyfileobj(original, copy, 1 << 20)
        with zipfile.ZipFile(copy, "a") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
        yield copy
