"""Flink's REST API as answered by a stand-in: what a real cluster does too seldom or too fast."""

import io
import json
import os
import signal
import socket
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import apache_beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from servers import answering

from beam.runners import flink
from beam.runners.flink_api import FlinkCluster
from beam.runners.run import pipeline_options, run_pipeline
from runtime.errors import UnavailableError, UserError

JOB = "0123456789abcdef0123456789abcdef"


def test_an_election_of_a_job_manager_is_waited_for() -> None:
    answers = [(503, b"Service temporarily unavailable due to an ongoing leader election.")]

    def answer(path: str) -> tuple[int, bytes]:
        assert path == f"/v1/jobs/{JOB}/status"
        return answers.pop() if answers else (200, json.dumps({"status": "RUNNING"}).encode())

    with answering(answer) as address:
        assert FlinkCluster(address).state(JOB) == "RUNNING"


def test_a_job_manager_that_has_forgotten_the_job_is_one_line() -> None:
    body = json.dumps({"errors": ["FlinkJobNotFoundException", "its stack trace"]}).encode()
    with answering(lambda _: (404, body)) as address:
        cluster = FlinkCluster(address)
        for ask in (cluster.state, cluster.failure):
            with pytest.raises(UnavailableError, match=f"no longer knows job {JOB}"):
                ask(JOB)


def test_the_first_answer_is_not_waited_for() -> None:
    with (
        answering(lambda _: (503, b"no")) as address,
        pytest.raises(UnavailableError, match="does not answer"),
    ):
        FlinkCluster(address).version()


@pytest.mark.parametrize(
    ("status", "page", "found"),
    [
        (404, b"<h1>Not Found</h1>", "HTTP 404"),
        (200, b"<h1>Hello</h1>", "no JSON: <h1>Hello"),
        (200, b'{"version": "1.19.3"}', "{'version': '1.19.3'}"),
        (200, b'["1.19.3"]', r"\['1.19.3'\]"),
    ],
)
def test_a_server_that_is_not_flinks_is_the_users_mistake(
    status: int, page: bytes, found: str
) -> None:
    with answering(lambda _: (status, page)) as address:
        complaint = f"^{address} is not a Flink JobManager: expected its version, found .*{found}"
        with pytest.raises(UserError, match=complaint) as caught:
            pipeline_options(["--runner=FlinkRunner", f"--flink_master={address}"])
    assert not isinstance(caught.value, UnavailableError)
    assert "\n" not in str(caught.value)


def test_a_server_that_breaks_off_an_upload_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def garble() -> None:
            with server.accept()[0] as connection:
                while b"lyft--" not in connection.recv(1 << 16):
                    pass
                connection.sendall(b"not HTTP\r\n\r\n")

        thread = threading.Thread(target=garble)
        thread.start()
        with pytest.raises(UnavailableError, match="cannot be sent the job"):
            FlinkCluster(f"127.0.0.1:{server.getsockname()[1]}").upload(io.BytesIO(), "x.jar")
        thread.join()


def _options(address: str, folder: Path) -> PipelineOptions:
    with zipfile.ZipFile(folder / "runner.jar", "w"):
        pass
    return PipelineOptions(
        [
            "--runner=FlinkRunner",
            f"--flink_master={address}",
            "--parallelism=1",
            f"--flink_job_server_jar={folder}/runner.jar",
            "--experiments=disable_logging_submission_environment",
        ]
    )


def _run_on(address: str, folder: Path) -> None:
    run_pipeline(lambda root: root | apache_beam.Create([1]), _options(address, folder))


@pytest.mark.parametrize(
    ("stopped_during", "attempts"), [("jars/upload", 0), (f"jars/1_{JOB}.jar/run", 3)]
)
def test_a_driver_that_is_stopped_early_leaves_nothing(
    stopped_during: str, attempts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flink goes on with what it was sent, and does not know a job that it still translates."""
    jars, cancelled, ended = [], [], threading.Event()

    def answer(path: str) -> tuple[int, bytes]:
        step = path.removeprefix("/v1/")
        content: object = {}
        if step == "jars":
            content = {"files": [{"id": f"1_{name}", "name": name} for name in jars]}
        elif step == "jars/upload":
            jars.append(f"{JOB}.jar")
            content = {"filename": f"/flink/1_{JOB}.jar"}
        elif step == f"jars/1_{JOB}.jar":
            jars.clear()
        elif step == f"jobs/{JOB}?mode=cancel":
            cancelled.append(step)
            return (202 if len(cancelled) == attempts else 404), b"{}"
        elif step == f"jobs/{JOB}/status":
            return 404, b"{}"
        if step == stopped_during:
            os.kill(os.getpid(), signal.SIGTERM)
            ended.wait()
        return 200, json.dumps(content).encode()

    monkeypatch.setattr(flink, "uuid", SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=JOB)))
    with answering(answer) as address:
        try:
            with pytest.raises(KeyboardInterrupt):
                _run_on(address, tmp_path)
        finally:
            ended.set()
    assert len(cancelled) == attempts
    assert jars == []


def test_a_job_that_flink_rejects_ends_at_once(tmp_path: Path) -> None:
    queries = []

    def answer(path: str) -> tuple[int, bytes]:
        queries.append(path.rpartition("/")[2].partition("?")[2])
        if path == "/v1/jars/upload":
            return 200, b'{"filename": "1_x.jar"}'
        return 400, b'{"errors": ["the main class has failed"]}'

    with answering(answer) as address, pytest.raises(RuntimeError, match="main class has failed"):
        _run_on(address, tmp_path)
    assert queries.count("mode=cancel") == 1


def test_the_last_failure_is_the_one_that_counts(tmp_path: Path) -> None:
    """The store was away for a while; then a worker met an error that the user can fix."""
    traces = [
        "java.lang.RuntimeException: runtime.errors.UserError: no space",
        "java.lang.RuntimeException: runtime.errors.UnavailableError: the store does not answer",
    ]

    def answer(path: str) -> tuple[int, bytes]:
        step = path.rpartition("/")[2]
        entries = [{"stacktrace": trace} for trace in traces]
        content: object = {
            "upload": {"filename": "1_x.jar"},
            "status": {"status": "RESTARTING"},
            "exceptions": {"exceptionHistory": {"entries": entries}},
        }.get(step, {})
        return 200, json.dumps(content).encode()

    with answering(answer) as address, pytest.raises(UserError, match=r"^no space$") as caught:
        _run_on(address, tmp_path)
    assert not isinstance(caught.value, UnavailableError)
