"""Failures during flows, with real servers, workers and jobs, and recovery by the next run."""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
import servers
from jobs import QUICK, RETRIED, ROOT, SMALL, on_small_disk
from operated import (
    SERVICES,
    ZOMBIE_AUTOMATION,
    Local,
    children,
    job_of,
    parameters_of,
    processes,
    run_local,
    until,
    up_again,
)

from runtime.services import State, start_time


@pytest.fixture(autouse=True)
def _left_running(local: Local) -> Iterator[None]:
    """A test that fails while a server is down leaves the next one all of them."""
    yield
    state = State.load(local.root)
    if not all(map(state.is_running, SERVICES)):
        up_again(local.root)


def _parent(pid: int) -> int:
    return int(re.findall(r"PPid:\t(\d+)", Path(f"/proc/{pid}/status").read_text())[0])


def _kill(local: Local, *services: str) -> None:
    """Kills a server with all its processes, or a worker alone, without the runs it started."""
    state = State.load(local.root)
    for name in services:
        kill = os.kill if name.startswith("worker") else os.killpg
        kill(state.services[name].pid, signal.SIGKILL)
        until(lambda name=name: not state.is_running(name))


def _message(local: Local, run: str) -> str:
    return str(local.ask(f"/flow_runs/{run}", method="GET")["state"]["message"])


def _completed(local: Local, *runs: str) -> None:
    final = {"Completed", "Failed", "Crashed", "Cancelled"}
    until(lambda: all(local.state(run) in final for run in runs))
    assert [(local.state(run), _message(local, run)) for run in runs] == [
        ("Completed", _message(local, run)) for run in runs
    ]


def _logged(local: Local, run: str, text: str) -> bool:
    lines = local.ask(
        "/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_DESC"}
    )
    return any(text in line["message"] for line in lines)


def _count(output: Path, table: str) -> int:
    files = f"{output}/predictions/{table}/**/*.parquet"
    return int(duckdb.sql(f"FROM '{files}' SELECT count(*)").fetchall()[0][0])


def _versions(store: Path) -> int:
    with sqlite3.connect(store) as connection:
        return int(connection.execute("SELECT count(*) FROM model_versions").fetchone()[0])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a whole run; another run finds its dataset and its model, if it came first."""
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def suspicious(local: Local) -> Iterator[None]:
    """Shortens the time of `make up`'s automation for one test; heartbeats come every 30 s."""
    assert local.set_within(ZOMBIE_AUTOMATION, 90) == 300
    try:
        yield
    finally:
        assert local.set_within(ZOMBIE_AUTOMATION, 300) == 90


# Slow: three jobs run twice, and Prefect notices a dead run only after 90 s.
@pytest.mark.usefixtures("suspicious")
def test_a_worker_killed_during_each_step_leaves_nothing_behind(
    local, scenes, dataset, trained, tmp_path
) -> None:
    store = tmp_path / "mlflow.db"
    train = {**QUICK, "epochs": 3, "batch_size": 4}
    asked: dict[str, dict[str, Any]] = {
        "ingest": {
            "source": str(scenes),
            "output": str(tmp_path),
            "config": SMALL.model_dump(),
        },
        "train": {
            "dataset": str(dataset),
            "output": str(tmp_path),
            "config": train,
            "gate": {"floor": 0},
            "tracking_uri": f"sqlite:///{store}",
        },
        "infer": {
            "model": trained.model,
            "dataset": str(dataset),
            "output": str(tmp_path),
            "tracking_uri": trained.tracking_uri,
        },
    }
    jobs = {
        "ingest": ("beam.ingest", f"--output={tmp_path}/datasets"),
        "train": ("model.train", f"--state={tmp_path}/training"),
        "infer": ("beam.infer", f"--output={tmp_path}/predictions"),
    }
    checkpoints = tmp_path / "training"
    # The checkpoint of an epoch is complete once this file exists.
    middle = {"ingest": "written", "train": "state.npz", "infer": "predicted"}
    zombies, places = {}, {name: tmp_path / f"held-{name}" for name in asked}
    for name, parameters in asked.items():
        places[name].mkdir()
        env = {"HELD_AT": middle[name], "HELD_IN": str(places[name])}
        env["PYTHONPATH"] = f"{ROOT}/tests/support/held:{ROOT}"
        zombies[name] = local.start(name, env, **parameters)
    for name, place in places.items():
        servers.until(lambda place=place: any(place.iterdir()), f"{name} in the middle of its work")
    held = {name: job_of(*words) for name, words in jobs.items()}
    workers = [worker for pid in held.values() for worker in children(pid)]
    assert len(workers) >= 2
    flows = [_parent(pid) for pid in held.values()]
    _kill(local, "worker-cpu", "worker-gpu")
    for pid in flows:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(start_time(pid) for pid in (*held.values(), *workers)))
    assert not list((tmp_path / "datasets/small").glob("[!.]*"))
    assert not (tmp_path / "predictions/runs").exists()
    assert {local.state(run) for run in zombies.values()} == {"Running"}

    run_local("up", local.root)
    assert len(local.ask("/automations/filter")) == 2
    again = [local.start(name, **parameters) for name, parameters in asked.items()]
    _completed(local, *again)
    (published,) = (tmp_path / "datasets/small").iterdir()
    assert published.name == dataset.name
    assert _versions(store) == 1
    assert _count(tmp_path, "masks") == 40
    assert _count(tmp_path, "runs") == 1
    assert not list(checkpoints.iterdir())
    assert not list((tmp_path / "predictions").glob(".staging*"))
    until(lambda: _logged(local, again[1], "going on after epoch"))

    until(lambda: {local.state(run) for run in zombies.values()} == {"Crashed"})
    assert "No heartbeat" in _message(local, zombies["train"])


# Slow: a whole run, during which the server starts again.
def test_prefects_server_goes_away_and_comes_back_during_a_run(local, scenes, finished) -> None:
    run = local.start("ingest-train-infer", **parameters_of(scenes, finished))
    job = job_of("beam.ingest", f"--output={finished}/datasets")
    _kill(local, "prefect")
    until(lambda: start_time(job) is None)
    # When the step ends, it finds no server and waits.
    time.sleep(5)
    assert list((finished / "datasets/small").glob("[!.]*"))
    run_local("up", local.root)
    _completed(local, run)
    assert _count(finished, "masks") == 40
    kinds = {
        one["key"]: one["type"]
        for one in local.ask("/artifacts/filter")
        if one["flow_run_id"] in {run, *(child["id"] for child in local.children(run))}
    }
    assert kinds == {
        "progress-beam-ingest": "progress",
        "progress-model-train": "progress",
        "progress-beam-infer": "progress",
        "data-card": "markdown",
        "gate-decision": "markdown",
        "model": "table",
        "class-statistics": "table",
        "drift": "table",
        "examples": "image",
        # Prefect stores a link as Markdown.
        "report": "markdown",
        "results": "markdown",
    }


# Slow: a step is tried again after a pause, and MLflow's server starts in the meantime.
def test_mlflow_is_down_at_the_start_and_comes_back(local, dataset, tmp_path) -> None:
    _kill(local, "mlflow")
    run = local.start(
        "train",
        dataset=str(dataset),
        output=str(tmp_path),
        config={**QUICK, "model_name": "mlflow-down"},
        gate={"floor": 0},
    )

    def tasks() -> list[dict[str, Any]]:
        of_run = {"flow_runs": {"id": {"any_": [run]}}}
        return list(local.ask("/task_runs/filter", of_run))

    # Prefect creates a task run first and sets its state afterwards.
    until(lambda: [one["state_name"] for one in tasks()] == ["AwaitingRetry"])
    # The next attempt is stopped until the server answers, however long that takes.
    job = job_of("model.train", f"--state={tmp_path}/training")
    os.kill(job, signal.SIGSTOP)
    up_again(local.root)
    os.kill(job, signal.SIGCONT)
    _completed(local, run)
    until(lambda: _logged(local, run, "Retry 1/3 will start"))
    (task,) = tasks()
    assert 1 < task["run_count"] <= 4


# The training itself is cut off from MLflow in tests/model/test_resume.py; here it is in a flow.
@pytest.mark.soak
def test_mlflow_goes_down_during_a_training_and_comes_back(local, dataset, tmp_path) -> None:
    epochs = 40
    run = local.start(
        "train",
        dataset=str(dataset),
        output=str(tmp_path),
        config={**QUICK, "epochs": epochs, "batch_size": 4, "model_name": "mlflow-away"},
        gate={"floor": 0},
    )
    job = job_of("model.train", f"--state={tmp_path}/training")
    servers.until(lambda: any(tmp_path.glob("training/**/state.npz")), "a first epoch")
    # Stopped, so that the training cannot end before the server is killed.
    os.kill(job, signal.SIGSTOP)
    _kill(local, "mlflow")
    os.kill(job, signal.SIGCONT)
    until(lambda: _logged(local, run, "are kept in the checkpoint"))
    up_again(local.root)
    _completed(local, run)
    (task,) = local.ask("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    assert task["run_count"] == 1
    with sqlite3.connect(local.root.parent / "mlflow/mlflow.db") as connection:
        of_model = "SELECT run_id FROM model_versions WHERE name = 'mlflow-away'"
        steps = connection.execute(
            f"SELECT step FROM metrics WHERE key = 'val_mean_iou' AND run_uuid IN ({of_model})"
        ).fetchall()
    assert sorted(step for (step,) in steps) == list(range(1, epochs + 1))


# Slow: two runs, and a worker starts in between.
def test_a_worker_that_is_killed_alone_takes_its_run_with_it(
    local, dataset, trained, tmp_path
) -> None:
    asked = {
        "model": trained.model,
        "dataset": str(dataset),
        "output": str(tmp_path),
        "tracking_uri": trained.tracking_uri,
    }
    run = local.start("infer", **asked)
    job = job_of("beam.infer", f"--output={tmp_path}/predictions")
    os.kill(job, signal.SIGSTOP)
    _kill(local, "worker-cpu")
    os.kill(job, signal.SIGCONT)
    # The flow crashes when it writes its next line, since no worker reads it.
    until(lambda: local.state(run) == "Crashed")
    # It crashes on its own and not through the automation, which waits for five minutes.
    assert "No heartbeat" not in _message(local, run)
    until(lambda: start_time(job) is None)
    up_again(local.root)
    again = local.start("infer", **asked)
    _completed(local, again)
    assert _count(tmp_path, "masks") == 40
    assert not list((tmp_path / "predictions").glob(".staging*"))


# A schedule is 40 s ahead, so that it is set in time on a busy machine.
def test_the_schedule_fires_while_a_run_goes_on_which_is_then_cancelled(
    local, scenes, finished, tmp_path
) -> None:
    """Its training on the other pool ends with it, and so does a run that waits behind both."""
    long = {**QUICK, "epochs": 1000, "batch_size": 1}
    shutil.rmtree(finished / "predictions", ignore_errors=True)
    given = parameters_of(scenes, tmp_path, train_config=long, train_on="gpu")
    first = local.start("ingest-train-infer", **given)
    state = f"--state={tmp_path}/training"
    job = job_of("model.train", state)
    # Stops the job, so that it cannot finish first.
    os.kill(job, signal.SIGSTOP)
    (whole,) = [one for one in local.ask("/deployments/filter") if one["schedules"]]
    soon = datetime.now(UTC) + timedelta(seconds=40)
    schedule = {
        "schedule": {"interval": 86400, "anchor_date": soon.isoformat()},
        "active": True,
        "parameters": parameters_of(scenes, finished),
    }
    (made,) = local.ask(f"/deployments/{whole['id']}/schedules", [schedule])
    # The server's own scheduling loop runs only once a minute.
    soonest = {"min_runs": 1, "max_runs": 1, "end_time": (soon + timedelta(seconds=5)).isoformat()}
    local.ask(f"/deployments/{whole['id']}/schedule", soonest)

    def due() -> list[dict[str, Any]]:
        around = [soon + timedelta(seconds=seconds) for seconds in (-2, 2)]
        when = {"after_": around[0].isoformat(), "before_": around[1].isoformat()}
        of_schedule = {"deployment_id": {"any_": [whole["id"]]}, "expected_start_time": when}
        found = local.ask("/flow_runs/filter", {"flow_runs": of_schedule})
        return [one for one in found if one["auto_scheduled"]]

    try:
        until(lambda: [one["state_name"] for one in due()] == ["AwaitingConcurrencySlot"])
    finally:
        (queued,) = [one["id"] for one in due()] or [""]
        local.ask(f"/deployments/{whole['id']}/schedules/{made['id']}", method="DELETE")
    last = local.start("ingest-train-infer", **parameters_of(scenes, tmp_path))
    until(lambda: local.state(last) == "AwaitingConcurrencySlot")
    assert local.state(first) == "Running"
    (child,) = [one for one in local.children(first) if one["state_name"] == "Running"]
    assert child["work_pool_name"] == "gpu"
    assert start_time(job)
    os.kill(job, signal.SIGCONT)
    for run in (last, first):
        local.cancel(run)
    until(lambda: {local.state(run) for run in (first, last, child["id"])} == {"Cancelled"})
    until(lambda: start_time(job) is None)
    assert processes("model.train", state) == []
    _completed(local, queued)
    assert _count(finished, "masks") == 40


FULL = """
import subprocess, sys
from flows.infer import infer

model, dataset, output, tracking_uri = sys.argv[1:]
given = {"model": model, "dataset": dataset, "output": output, "tracking_uri": tracking_uri}
state = infer(**given, return_state=True)
print(state.name, state.message)
subprocess.run(["mount", "-o", "remount,size=64m", output], check=True)
infer(**given)
import duckdb
print(duckdb.sql(f"FROM '{output}/predictions/masks/**/*.parquet' SELECT count(*)").fetchall())
"""


# Slow: two flows of real jobs.
def test_a_full_disk_fails_at_once_and_the_next_run_ends_well(
    local, dataset, trained, tmp_path
) -> None:
    output = tmp_path / "out"
    begin = on_small_disk(output)
    arguments = [trained.model, str(dataset), str(output), trained.tracking_uri]
    done = subprocess.run(
        [*begin, sys.executable, "-c", FULL, *arguments],
        cwd=ROOT,
        env={**os.environ, "PREFECT_API_URL": local.api},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    failed, rows = done.stdout.splitlines()[-2:]
    assert failed.startswith("Failed ")
    assert "No space left on device" in failed
    assert not RETRIED.search(done.stderr)
    assert rows == "[(40,)]"
