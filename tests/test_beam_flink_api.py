"""Flink's REST API as answered by a JobManager that is being replaced."""

import json

import pytest
from servers import answering

from beam.flink_api import FlinkCluster
from schemas.errors import UnavailableError

JOB = "0123456789abcdef0123456789abcdef"


def test_an_election_of_a_job_manager_is_waited_for() -> None:
    answers = [(503, b"Service temporarily unavailable due to an ongoing leader election.")]

    def answer(path: str) -> tuple[int, bytes]:
        assert path == f"/v1/jobs/{JOB}/status"
        return answers.pop() if answers else (200, json.dumps({"status": "RUNNING"}).encode())

    with answering(answer) as address:
        assert FlinkCluster(address).state(JOB) == "RUNNING"


def test_a_job_manager_that_has_forgotten_the_job_is_one_line() -> None:
    said = json.dumps({"errors": ["FlinkJobNotFoundException", "its stack trace"]}).encode()
    with answering(lambda _: (404, said)) as address:
        cluster = FlinkCluster(address)
        for ask in (cluster.state, cluster.errors):
            with pytest.raises(UnavailableError, match=f"no longer knows job {JOB}"):
                ask(JOB)


def test_a_server_that_is_asked_for_something_else_is_not_waited_for() -> None:
    with (
        answering(lambda _: (503, b"no")) as address,
        pytest.raises(RuntimeError, match="HTTP 503: no"),
    ):
        FlinkCluster(address).version()
