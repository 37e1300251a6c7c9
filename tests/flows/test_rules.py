"""Unit tests of the flows: run names, retries, progress, command-line plugin, process groups.

Prefect creates its folder when it is imported, so modules that use it are imported inside the
tests, whose home is a temporary folder.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from types import SimpleNamespace
from typing import ClassVar

import pytest
from jobs import ROOT, python
from operated import processes
from servers import answering, ask, free_port, until

from flows.lifecycle.job_process import JobCallbacks, JobError, run_job
from runtime.errors import UnavailableError, UserError
from runtime.services import (
    Service,
    State,
    group_members,
    prefect_api_url,
    start_time,
    stop_process_group,
)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("/data/raw/lyft/", "lyft"),
        ("data/raw", "raw"),
        ("gs://bucket/lyft/raw", "raw"),
        ("outputs/datasets/lyft/1f0c2ab34d5e", "lyft-1f0c2ab34d5e"),
        ("models:/lyft-unet@champion", "lyft-unet@champion"),
        ("models:/lyft-unet/3", "lyft-unet-3"),
        ("outputs/unet.keras", "unet.keras"),
        ("..", "unnamed"),
    ],
)
def test_run_name_is_the_last_part_of_its_input(place, name) -> None:
    from flows.lifecycle.run_names import short_name

    assert short_name(place) == name


@pytest.mark.parametrize(
    ("error", "helps"),
    [
        (UserError("no such folder"), False),
        (UnavailableError("MLflow does not answer"), True),
        (JobError("killed"), True),
        (OSError("no space left"), True),
        (TimeoutError("a connection's"), True),
    ],
)
def test_only_errors_that_a_retry_can_fix_are_retried(error, helps) -> None:
    from flows.lifecycle.retries import should_retry

    state = SimpleNamespace(result=lambda **_: error)
    assert should_retry(None, None, state) is helps


def test_all_jobs_have_the_retry_policy_without_timeouts() -> None:
    from prefect.task_engine import TaskRunTimeoutError

    from flows import backfill, infer, ingest, train
    from flows.lifecycle import retries
    from flows.tasks import report

    for step in (
        backfill.infer_pair,
        infer.infer_tables,
        ingest.ingest_dataset,
        report.write_report,
        train.train_model,
    ):
        assert step.retries == 3
        assert step.retry_condition_fn is retries.should_retry
    state = SimpleNamespace(result=lambda **_: TaskRunTimeoutError("48 hours"))
    assert not retries.should_retry(None, None, state)


@pytest.mark.parametrize(
    ("line", "share"),
    [
        ("infer:  12.3 s  1,234 of 2,000 images done (62%), 1,234 predicted", 62),
        ("ingest:   2.0 s  starting workers", None),
        ("train: epoch 3/18, 12.3 s, loss 0.4000, val_loss 0.5000", 100 * 3 / 18),
        ("train: epoch 3/18, step 20/40, 1.50 steps/s, loss 0.4000", 100 * 2.5 / 18),
        ("train: going on after epoch 3", None),
        ("nothing has changed: 40 records, all files intact", None),
    ],
)
def test_percent_from_a_log_line(line, share) -> None:
    from flows.lifecycle.progress import percent

    assert percent(line) == (None if share is None else pytest.approx(share))


def test_failed_progress_update_does_not_stop_the_job(monkeypatch) -> None:
    from flows.lifecycle import progress

    def refuse(*_: object) -> None:
        sent.append(1)
        raise ConnectionError("away")

    sent: list[int] = []
    monkeypatch.setattr(progress, "create_progress_artifact", refuse)
    shown = progress.ProgressArtifact("beam.ingest")
    for share in range(100):
        shown.update(share)
    assert len(sent) == 1


def test_a_request_waits_for_a_server_that_is_about_to_start() -> None:
    port = free_port()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/")
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(ask, request)
        time.sleep(0.5)
        with answering(lambda _: (200, b"[1]"), port):
            assert asked.result() == [1]


def test_wait_for_remote_training_outlasts_an_outage(monkeypatch) -> None:
    import httpx
    from prefect.states import Completed, Running

    from flows.tasks import remote_training

    class Client(AbstractContextManager):
        answers: ClassVar[list] = [Running(), *[httpx.ConnectError("away")] * 99, Completed()]

        def __exit__(self, *_: object) -> None:
            pass

        def read_flow_run(self, _: str) -> SimpleNamespace:
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return SimpleNamespace(state=answer, start_time="now")

    monkeypatch.setattr(remote_training, "get_client", lambda **_: Client())
    monkeypatch.setattr(remote_training, "_POLL_S", 0)
    run = SimpleNamespace(id="some", name="some")
    assert remote_training._wait_for_end(run, lambda: None).state.is_completed()
    monkeypatch.setattr(remote_training, "SERVER_TIMEOUT_S", -1)
    Client.answers[:] = [Running(), httpx.ConnectError("away")]
    with pytest.raises(httpx.ConnectError):
        remote_training._wait_for_end(run, lambda: None)


def test_version_ranges_are_expanded() -> None:
    from flows.backfill import expand_versions

    assert expand_versions(
        ["models:/a/9-11", "models:/a/10", "models:/a-1@champion", "x/1-2.keras"]
    ) == [
        *(f"models:/a/{number}" for number in (9, 10, 11)),
        "models:/a-1@champion",
        "x/1-2.keras",
    ]
    for slip in ("models:/a/3-2", "models:/a/1-99999"):
        with pytest.raises(UserError, match="expected FIRST-LAST with at most 1000 versions"):
            expand_versions([slip])


def test_exit_code_75_is_unavailable(tmp_path, monkeypatch) -> None:
    (tmp_path / "absent.py").write_text(
        "import sys\nprint('error: MLflow is away', file=sys.stderr)\nsys.exit(75)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"^MLflow is away$"):
        run_job("absent", [], JobCallbacks(lambda _: None))


SILENT = "import time\ntime.sleep(3000)\n"
"""Outlasts the limit of a test."""


def test_silent_job_in_a_thread_is_stopped_at_its_timeout(tmp_path, monkeypatch) -> None:
    from prefect.utilities.timeout import timeout

    (tmp_path / "silent.py").write_text(SILENT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run() -> None:
        # Around each task, Prefect sets its timeout so.
        with timeout(1):
            run_job("silent", [str(tmp_path)], JobCallbacks(lambda _: None))

    with ThreadPoolExecutor() as pool, pytest.raises(TimeoutError, match="timed out after 1"):
        pool.submit(run).result()
    assert not processes("silent", str(tmp_path))


def test_deployment_name_is_found_and_resolved() -> None:
    from flows.deploy.cli_plugin import name_index, resolve_name

    run = ["prefect", "deployment", "run"]
    assert name_index([*run, "infer"]) == 3
    options = ["--watch", "-p", "a=1", "--params={}"]
    assert name_index([*run, *options, "infer", "--tag", "x"]) == 7
    for others in ([*run, "--id", "x"], run, [*run, "--help"]):
        assert name_index(others) is None
    assert name_index(["prefect", "deployment", "inspect", "infer"]) is None
    known = ["ingest/nightly", "infer/nightly", "infer/infer"]
    assert resolve_name("infer", known) == resolve_name("infer/infer", known) == "infer/infer"
    with pytest.raises(LookupError, match="ambiguous: expected one of infer/nightly, ingest/night"):
        resolve_name("nightly", known)
    with pytest.raises(LookupError, match="does not exist; found infer/infer, infer/nightly"):
        resolve_name("inf", known)
    with pytest.raises(LookupError, match="found none; `make up` or"):
        resolve_name("infer", [])


def test_reason_of_a_failed_remote_training_is_passed_on() -> None:
    from uuid import uuid4

    from prefect.client.schemas.objects import FlowRun
    from prefect.states import Crashed, Failed

    from flows.tasks.remote_training import _describe_end

    for state, message in (
        (Failed(message="error: dataset 'x': there is no such folder"), "ended as Failed: dataset"),
        (Crashed(), "ended as Crashed: its page says more"),
    ):
        run = FlowRun(flow_id=uuid4(), state=state, state_name=state.name)
        assert _describe_end(run).startswith(message)


def test_text_parameters_are_quoted() -> None:
    from flows.deploy.cli_plugin import quote_texts

    text, number = {"type": "string"}, {"type": "integer"}
    schema = {"a": text, "b": {"anyOf": [text, {"type": "null"}]}, "n": number}

    def quoted_words(*words: str) -> list[str]:
        return quote_texts(["prefect", "deployment", "run", "x", *words], schema)[4:]

    for value in ("20240501", "1e5", "true", "007", "[1]", 'a"b', "", "a=b"):
        quoted = json.dumps(value)
        assert quoted_words("-p", f"a={value}") == ["-p", f"a={quoted}"]
        assert quoted_words(f"--param=b={value}", "--watch") == [f"--param=b={quoted}", "--watch"]
    assert quoted_words("-p", "a=null", "-p", "b=null") == ["-p", 'a="null"', "-p", "b=null"]
    others = ["-p", 'a="7"', "-p", "n=7", "-p", "other=7", "--tag", "a=7", "--params", '{"a": 7}']
    assert quoted_words(*others) == others


def test_missing_server_is_refused_at_once(tmp_path) -> None:
    shutil.copy(ROOT / "prefect.toml", tmp_path)
    environment = {**os.environ, "PREFECT_LOGGING_LEVEL": "ERROR"}
    environment.pop("PREFECT_API_URL", None)
    api = f"http://127.0.0.1:{free_port()}/api"
    away = f"Prefect at {api} does not answer (ConnectError); `make up`, or correct PREFECT_API_URL"
    unnamed = "no Prefect server is named or runs here; `make up`, or set PREFECT_API_URL"
    for server, message in (({}, unnamed), ({"PREFECT_API_URL": api}, away)):
        command = ("-m", "prefect", "deployment", "run", "infer")
        done = python(*command, cwd=tmp_path, env={**environment, **server})
        assert (done.returncode, done.stderr) == (2, f"error: {message}\n")


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("flows.demo", ["--epochs=-1"], "epochs: Input should be greater than or equal to 0"),
        ("flows.demo", ["--raw=/none"], "RAW '/none': there is no such folder"),
        ("flows.demo", ["--output=s3://a/b"], "--output 's3://a/b': expected a folder of this"),
        ("flows.flink_demo", ["--raw=/none"], "RAW '/none': there is no such folder"),
        ("flows.flink_demo", ["--output=s3://a/b"], "--output 's3://a/b': expected a folder"),
        ("flows.local", ["up", "--root=/proc/none"], "--root /proc/none: cannot be made: No such"),
        ("flows.local", ["up", "--raw=/none"], "RAW '/none': there is no such folder"),
        (
            "flows.local",
            ["up", "--notify=secret"],
            "--notify: expected http://…, https://… or off\n",
        ),
        ("flows.deploy", ["--tracking_uri=x", "--notify=http:"], "--notify: expected http://…"),
        ("flows.deploy", ["--tracking_uri=x"], "no server is named; set PREFECT_API_URL"),
        ("flows.flink", ["up", "--slots=0"], "--slots=0: expected at least 1"),
        ("flows.flink", ["up", "--task_managers=-1"], "--task_managers=-1: expected at least 1"),
        ("flows.scenes", ["--output=a", "--count=0"], "0 scenes from seed 0: expected at least 1"),
        ("flows.scenes", ["--output=s3://a/b"], "--output 's3://a/b': expected a folder of this"),
        ("flows.scenes", ["--output=/dev/null"], "'/dev/null/CameraRGB': Not a directory"),
        ("beam.ingest", ["--source=/", "--output="], "expected a folder or a URI, found an empty"),
        ("beam.ingest", ["--source=", "--output=a"], "expected a folder or a URI, found an empty"),
    ],
)
def test_user_error_is_one_line(module, arguments, message, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = python("-m", module, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


STUBBORN = """trap '' TERM; echo here; while :; do sleep 0.1; done"""


@pytest.mark.parametrize(
    ("script", "kills_leader"),
    [
        # The child is left behind when its leader is killed.
        ("sleep 600 & echo here; wait", True),
        # The leader ends on SIGTERM, but its child does not.
        (f"({STUBBORN}) & wait", False),
        (STUBBORN, False),
    ],
    ids=["orphans", "stubborn child", "stubborn leader"],
)
def test_whole_process_group_is_stopped(script, kills_leader) -> None:
    with subprocess.Popen(
        ["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True
    ) as leader:
        try:
            assert leader.stdout is not None
            leader.stdout.readline()
            service = Service(pid=leader.pid, started=start_time(leader.pid) or "")
            if kills_leader:
                leader.kill()
                leader.wait()
                assert not service.is_running()
            assert group_members(leader.pid)
            before = service.model_copy(update={"boot": "of another start of the machine"})
            before.stop(0.5)
            assert group_members(leader.pid)
            assert service.has_processes()
            service.stop(0.5)
            until(lambda: not group_members(leader.pid), "the end of those that were killed")
            assert not service.has_processes()
            service.stop(0.5)
        finally:
            stop_process_group(leader.pid, 0)


def test_only_the_process_that_was_started_is_stopped(tmp_path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(3600)"]
    with subprocess.Popen(command, start_new_session=True) as process:
        ours = Service(pid=process.pid, started=start_time(process.pid) or "")
        other = ours.model_copy(update={"started": "1"})
        state = State(ports={"prefect": 4321}, services={"prefect": other})
        state.save(tmp_path)
        assert State.load(tmp_path) == state
        assert prefect_api_url(tmp_path) is None
        other.stop(1)
        time.sleep(0.2)
        assert process.poll() is None

        state.services["prefect"] = ours
        state.save(tmp_path)
        assert prefect_api_url(tmp_path) == "http://127.0.0.1:4321/api"
        # A folder may be moved while they run; in a copy of it, they are another's.
        copy, moved = tmp_path / "copy", tmp_path / "moved"
        (project := tmp_path / "project").mkdir()
        State(services={"prefect": ours}).save(project)
        shutil.copytree(project, copy)
        in_copy = State.load(copy).services
        after_move = State.load(project.rename(moved)).services
        ours.stop(60)
        process.wait()
        assert prefect_api_url(tmp_path) is None
    assert (in_copy, after_move) == ({}, {"prefect": ours})
    (tmp_path / "state.json").write_text("{")
    assert State.load(tmp_path) == State()


BACKGROUND = """
import signal, subprocess, sys
from flows.local import services

CHILD = "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
signal.signal(signal.SIGINT, signal.SIG_IGN)
services.up = lambda *_: subprocess.check_output([sys.executable, "-c", CHILD], text=True)
print(services.main(["up"]))
"""


def test_services_started_in_the_background_can_be_interrupted() -> None:
    """As a shell does with `make up &`: Prefect's workers stop themselves by an interrupt."""
    done = python("-c", BACKGROUND)
    assert done.stdout.strip() == "False", done.stderr


def test_up_refuses_a_store_that_was_moved(tmp_path, monkeypatch) -> None:
    from flows.local import services

    (tmp_path / "mlflow/artifacts/1").mkdir(parents=True)
    with closing(sqlite3.connect(tmp_path / "mlflow/mlflow.db")) as store, store:
        store.execute("CREATE TABLE experiments (artifact_location)")
        store.execute("INSERT INTO experiments VALUES ('file:///gone/mlflow/artifacts/1')")
    # Without the check, servers would start.
    monkeypatch.setattr(services, "lock", lambda *_, **__: pytest.fail("not refused"))
    with pytest.raises(
        UserError, match=r"names its files in /gone/mlflow, which is gone.*--repair"
    ):
        services.up(tmp_path / "local")
