"""Unattended runs that never begin, are late or fail; final states; notifications by webhook."""

import json
import os
import re
import signal
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
import servers
from jobs import ROOT, python
from operated import RUN, START_AUTOMATION, Local, children, until, up_again
from servers import free_port

from runtime.services import State

WHOLE = "ingest-train-infer"


def _deployment(local: Local, name: str = WHOLE) -> dict[str, Any]:
    (found,) = [one for one in local.ask("/deployments/filter") if one["name"] == name]
    return dict(found)


def _run(local: Local, run: str) -> dict[str, Any]:
    return dict(local.ask(f"/flow_runs/{run}", method="GET"))


def _slots(local: Local) -> int:
    limit = _deployment(local)["global_concurrency_limit"]["id"]
    return int(local.ask(f"/v2/concurrency_limits/{limit}", method="GET")["active_slots"])


@pytest.fixture
def impatient(local: Local):
    """Shortens the time within which a run must begin, for one test."""
    usual = local.set_within(START_AUTOMATION, 20)
    yield lambda: local.set_within(START_AUTOMATION, usual)
    local.set_within(START_AUTOMATION, usual)


def test_a_run_whose_worker_dies_before_it_begins_crashes_and_frees_its_slot(
    local, impatient, tmp_path
) -> None:
    worker = State.load(local.root).services["worker-cpu"].pid
    run = local.start(WHOLE, source=str(tmp_path / "none"))
    # Python takes seconds to import Prefect before the run can begin.
    begun = servers.until(
        lambda: _run(local, run)["state_type"] == "PENDING" and children(worker), "a run's process"
    )
    for pid in (worker, *begun):
        os.kill(pid, signal.SIGKILL)
    assert _run(local, run)["state_type"] == "PENDING"
    assert _slots(local) == 1
    until(lambda: local.state(run) == "Crashed")
    assert "did not start" in _run(local, run)["state"]["message"]
    assert _slots(local) == 0
    impatient()
    up_again(local.root)
    # The next run gets the slot; the reason of its failure is the last line, and on both pages.
    (tmp_path / "raw").mkdir()
    done = local.prefect(*RUN, "--watch", "-p", f"source={tmp_path / 'raw'}")
    reason = _last_line(done)
    assert reason.startswith("error: ")
    assert f"{tmp_path / 'raw'}" in reason
    assert "holds no pairs" in reason
    (run,) = re.findall(r"UUID: (\S+)", done.stdout)
    (child,) = local.children(run)
    assert _run(local, run)["state"]["message"] == child["state"]["message"] == reason


def _last_line(done: Any) -> str:
    assert done.returncode == 1, done.stdout + done.stderr
    return str(done.stdout.splitlines()[-1])


ENDS = """
import json, sys
from flows.backfill import backfill
from flows.lifecycle.outcome import with_final_state
from flows.infer import infer
from flows.lifecycle.job_process import JobCallbacks, run_job
from flows.train import train
from prefect import State, flow

@flow
@with_final_state
def child(way: str) -> str:
    return run_job("ending", [way], JobCallbacks(print)).output

@flow
@with_final_state
def parent(way: str) -> str:
    return child(way)

def show(state: State) -> None:
    print(json.dumps([state.name, state.message]))

for way in ("2", "75", "1", "kill", "0"):
    show(parent(way, return_state=True))

none, store = sys.argv[1:]
given = {"output": f"{none}-out", "tracking_uri": store, "return_state": True}
show(train(none, **given))
show(infer(dataset=none, **given))
show(backfill(models=["none.keras"], sources=[none, f"{none}2"], **given))
show(backfill(models=["none.keras"], sources=[""], **given))
"""

ENDING = """
import os, signal, sys

way = sys.argv[1]
print("halfway there", file=sys.stderr, flush=True)
if way == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if way == "1":
    raise ValueError("a defect")
if way == "0":
    print("well")
else:
    print("error: /raw: no image found", file=sys.stderr)
sys.exit(int(way))
"""


def test_state_message_is_the_reason_for_each_exit(local, tmp_path) -> None:
    (tmp_path / "ending.py").write_text(ENDING)
    paths = {"PREFECT_API_URL": local.api, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    places = (str(tmp_path / "none"), f"sqlite:///{tmp_path}/mlflow.db")
    done = python("-c", ENDS, *places, env={**os.environ, **paths})
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    killed = "was killed by SIGKILL (as when memory runs out); it said last: halfway there"
    dataset = f"error: dataset '{places[0]}': there is no such folder"
    assert [name for name, _ in found] == [*["Failed"] * 4, "Completed", *["Failed"] * 4]
    messages = [message for _, message in found]
    assert messages[:4] == [
        "error: /raw: no image found",
        "error: /raw: no image found",
        "error: ending ended with code 1; it said last: ValueError: a defect",
        f"error: ending {killed}",
    ]
    assert messages[5:7] == [dataset, dataset]
    why = [
        f"none.keras over {place}: source '{place}': there is no such folder or archive"
        for place in (places[0], f"{places[0]}2")
    ]
    assert messages[7] == f"error: 2 of 2 failed: {'; '.join(why)}"
    assert "sources" in messages[8]


def test_each_flow_sets_its_final_state() -> None:
    from flows.backfill import backfill
    from flows.infer import infer
    from flows.ingest import ingest
    from flows.ingest_train_infer import ingest_train_infer
    from flows.train import train

    for one in (backfill, infer, ingest, ingest_train_infer, train):
        assert vars(one.fn)["__wrapped__"].__module__ == one.fn.__module__


@contextmanager
def _webhook_server():
    """A server that records requests; yields its address and the requests' paths and bodies."""
    notes: list[tuple[str, dict[str, Any]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            notes.append((self.path, json.loads(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", notes
        finally:
            server.shutdown()
            thread.join()


def test_webhook_gets_failed_and_crashed_runs_until_removed(local) -> None:
    def crash() -> str:
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        scheduled = {"type": "SCHEDULED"}
        scheduled["state_details"] = {"scheduled_time": tomorrow.isoformat()}
        place = f"/deployments/{_deployment(local, 'train')['id']}/create_flow_run"
        run = local.ask(place, {"parameters": {"dataset": "x"}, "state": scheduled})["id"]
        crashed = {"state": {"type": "CRASHED", "message": "its process is gone"}, "force": True}
        local.ask(f"/flow_runs/{run}/set_state", crashed)
        return str(run)

    def of(run: str) -> list[tuple[str, dict[str, Any]]]:
        """The requests for a run, each once: a busy server may repeat one.

        It may still tell of another test's run.
        """
        told = [one for one in notes if one[1]["url"].endswith(f"/{run}")]
        return [one for index, one in enumerate(told) if one not in told[:index]]

    secret = "token-of-the-chat"
    with _webhook_server() as (address, notes):
        up_again(local.root, f"--notify={address}/{secret}")
        # What looks like a number is a path as well.
        done = local.prefect("deployment", "run", "infer", "--watch", "-p", "dataset=20240501")
        reason = f"error: dataset '{ROOT}/20240501': there is no such folder"
        assert _last_line(done) == reason
        (failed,) = re.findall(r"UUID: (\S+)", done.stdout)
        until(lambda: of(failed))
        ((path, note),) = of(failed)
        assert path == f"/{secret}"
        assert (note["flow"], note["run"]) == ("infer", "infer-with-lyft-unet@champion")
        assert (note["state"], note["reason"]) == ("Failed", reason)
        assert reason in note["text"]
        assert note["url"].startswith(local.api.removesuffix("/api"))
        crashed = crash()
        until(lambda: of(crashed))
        ((_, note),) = of(crashed)
        assert (note["flow"], note["state"]) == ("train", "Crashed")
        assert note["reason"] == "its process is gone"

        # Another address, which does not answer, in place of the first.
        up_again(local.root, f"--notify=http://127.0.0.1:{free_port()}/{secret}")
        untold = crash()
        calls = {"filter": {"event": {"name": ["prefect.automation.action.failed"]}}}
        until(lambda: local.ask("/events/filter", calls)["events"])
        assert len(_told(local)) == 1
        up_again(local.root, "--notify=off")
        assert _told(local) == []
        assert [len(of(run)) for run in (failed, crashed, untold)] == [1, 1, 0]
    assert secret not in json.dumps(local.ask("/events/filter"))
    for file in local.root.rglob("*"):
        assert not file.is_file() or secret.encode() not in file.read_bytes(), file


def _told(local: Local) -> list[str]:
    found = local.ask("/automations/filter")
    return [one["name"] for one in found if one["name"] == "Notify of failed runs"]


def test_late_scheduled_runs_work_once_after_an_outage(local, tmp_path) -> None:
    (found,) = [one for one in local.ask("/deployments/filter") if one["name"] == "ingest"]
    place = f"/deployments/{found['id']}"
    given = {"source": str(tmp_path / "none")}
    daily = {"schedule": {"cron": "30 3 * * *"}, "active": True, "parameters": given}
    now = datetime.now(UTC)
    # Two nights without a worker.
    local.ask("/work_pools/cpu", {"is_paused": True}, "PATCH")
    try:
        (made,) = local.ask(f"{place}/schedules", [daily])
        nights = {
            "start_time": (now - timedelta(days=2)).isoformat(),
            "end_time": now.isoformat(),
            "max_runs": 2,
        }
        local.ask(f"{place}/schedule", nights)
        body = {"parameters": given, "state": {"type": "SCHEDULED"}}
        asked = local.ask(f"{place}/create_flow_run", body)["id"]
    finally:
        local.ask("/work_pools/cpu", {"is_paused": False}, "PATCH")

    def late() -> list[dict[str, Any]]:
        of_schedule = {
            "deployment_id": {"any_": [found["id"]]},
            "expected_start_time": {"before_": now.isoformat()},
        }
        body = {"flow_runs": of_schedule, "sort": "EXPECTED_START_TIME_ASC"}
        return [one for one in local.ask("/flow_runs/filter", body) if one["auto_scheduled"]]

    ends = ["Skipped", "Failed"]
    until(lambda: [one["state_name"] for one in late()] == ends)
    first, last = late()
    due = datetime.fromisoformat(last["expected_start_time"])
    why = f"superseded by the run that was due at {due:%Y-%m-%d %H:%M}"
    assert first["state"]["message"].startswith(why)
    # What a person requested is no schedule's, however many runs do the same.
    until(lambda: local.state(asked) == "Failed")
    assert "there is no such folder" in _run(local, asked)["state"]["message"]
    # Nor is a late run that a person starts again.
    again = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True}
    local.ask(f"/flow_runs/{first['id']}/set_state", again)
    until(lambda: local.state(first["id"]) == "Failed")
    local.ask(f"{place}/schedules/{made['id']}", method="DELETE")
