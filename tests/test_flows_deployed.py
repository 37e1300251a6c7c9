"""A Prefect server, MLflow, two workers and the command line, as `make up` starts them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from conftest import ROOT, SMALL
from servers import free_port

from flows.state import State, start_time

pytestmark = pytest.mark.timeout(900)

SERVICES = ["prefect", "mlflow", "worker-cpu", "worker-gpu"]


class Local:
    """What `up` started, and Prefect's command line beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.api = f"{State.load(root).url('prefect')}/api"

    def prefect(self, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=cwd,
            env={**os.environ, "PREFECT_API_URL": self.api, "COLUMNS": "400"},
            capture_output=True,
            text=True,
            check=False,
        )

    def start(self, parameters: dict[str, Any]) -> str:
        """Starts a run; returns its id."""
        done = self.prefect(*RUN, "--params", json.dumps(parameters))
        assert done.returncode == 0, done.stdout + done.stderr
        return re.findall(r"UUID: (\S+)", done.stdout)[0]

    def ask(self, path: str, body: dict[str, Any] | None = None, method: str = "POST") -> Any:
        """Prefect's API."""
        request = urllib.request.Request(
            self.api + path,
            None if method == "GET" else json.dumps(body or {}).encode(),
            {"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def children(self, run: str) -> list[dict[str, Any]]:
        filters = {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}}
        return self.ask("/flow_runs/filter", filters)

    def logs(self, run: str) -> list[str]:
        """What the subflows of a run logged."""
        ids = [child["id"] for child in self.children(run)]
        filters = {"logs": {"flow_run_id": {"any_": ids}}}
        return [line["message"] for line in self.ask("/logs/filter", filters)]

    def state(self, run: str) -> str:
        return self.ask(f"/flow_runs/{run}", method="GET")["state"]["name"]


def _local(command: str, root: Path) -> str:
    """`make up` and `make down`, in processes of their own; returns what they say."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.local", command, f"--root={root}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


RUN = ("deployment", "run", "ingest-train-infer")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    root = tmp_path_factory.mktemp("local")
    State(ports={"prefect": free_port(), "mlflow": free_port()}).save(root)
    try:
        report = _local("up", root)
        state = State.load(root)
        assert list(state.services) == SERVICES
        for name in ("prefect", "mlflow"):
            assert state.url(name) in report
        yield Local(root)
        services = State.load(root).services
    finally:
        said = _local("down", root)
    assert said == "stopped: worker-gpu, worker-cpu, mlflow, prefect"
    assert not any(start_time(service.pid) for service in services.values())
    assert State.load(root).ports == state.ports
    assert _local("down", root).startswith("nothing runs in")


def _parameters(scenes: Path, output: Path, **others: Any) -> dict[str, Any]:
    return {
        "source": str(scenes),
        "output": str(output),
        "ingest_config": SMALL.model_dump(),
        "train_config": {"epochs": 1, "filters": 4},
        "gate_config": {"floor": 0},
        **others,
    }


def _until(what: Callable[[], Any], seconds: float = 180) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.5)
    return found


def _processes(module: str, argument: str) -> list[int]:
    """Ids of the jobs that run ``python -m module … argument …``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if module in words and argument in words:
            found.append(int(path.parent.name))
    return found


def test_the_run_that_the_readme_shows(local, scenes, tmp_path) -> None:
    parameters = json.dumps(_parameters(scenes, tmp_path))
    # Trained by the worker of the other pool, then found again by the parent itself.
    done = local.prefect(*RUN, "--watch", "-p", "train_on=gpu", "--params", parameters)
    assert done.returncode == 0, done.stdout + done.stderr
    (first,) = re.findall(r"UUID: (\S+)", done.stdout)

    artifacts = {
        one["key"]: one["data"]
        for one in local.ask("/artifacts/filter", {})
        if one["flow_run_id"] == first or one["key"] == "model"
    }
    classes = json.loads(artifacts["class-statistics"])
    assert {row["class"] for row in classes} >= {"Roads", "Vehicles"}
    (model,) = json.loads(artifacts["model"])
    assert model["tracking_uri"] == State.load(local.root).url("mlflow")
    assert f"`{model['model']}`" in artifacts["results"]
    rows = "FROM '{}/predictions/{}/**/*.parquet' SELECT count(*)"
    assert duckdb.sql(rows.format(tmp_path, "masks")).fetchall() == [(40,)]
    flow_run = "FROM '{}/predictions/runs/**/*.parquet' SELECT flow_run_id"
    assert duckdb.sql(flow_run.format(tmp_path)).fetchall() == [(first,)]

    pools = {one["name"].split("-")[0]: one["work_pool_name"] for one in local.children(first)}
    assert pools == {"ingest": None, "train": "gpu", "infer": None}
    names = {one["name"] for one in local.ask("/flow_runs/filter", {})}
    (dataset,) = (tmp_path / "datasets/small").glob("[!.]*")
    assert {
        f"ingest-train-infer-{scenes.name}",
        f"ingest-{scenes.name}",
        f"train-on-small-{dataset.name}",
        f"infer-with-{model['model'].removeprefix('models:/').replace('/', '-')}",
    } <= names
    assert {"ingest 32x48 nearest", "train unet 4 filters 32x48"} == set(
        json.loads((tmp_path / "durations.json").read_text())
    )

    again = local.prefect(
        "deployment", "run", "--watch", f"{RUN[2]}/{RUN[2]}", "--params", parameters
    )
    assert again.returncode == 0, again.stdout + again.stderr
    (second,) = re.findall(r"UUID: (\S+)", again.stdout)
    _until(lambda: "\n".join(local.logs(second)).count("nothing has changed") == 3, 30)
    assert duckdb.sql(flow_run.format(tmp_path)).fetchall() == [(first,)]


def test_a_parameter_out_of_bounds_is_refused_before_the_run(local) -> None:

    def made(runs: list[dict[str, Any]]) -> set[str]:
        return {one["id"] for one in runs if not one["auto_scheduled"]}

    before = local.ask("/flow_runs/filter", {})
    for given, field in (
        ({"train_config": {"epochs": 0}}, "train_config.epochs"),
        ({"ingest_config": {"height": -1}}, "ingest_config.height"),
        ({"train_on": "moon"}, "train_on"),
        ({"infer_config": {"nonsense": 1}}, "infer_config"),
    ):
        done = local.prefect(*RUN, "--params", json.dumps(given))
        assert done.returncode == 1
        assert f"'{field}'" in done.stdout + done.stderr
    assert made(local.ask("/flow_runs/filter", {})) == made(before)


def test_the_nightly_schedule_and_the_queue_behind_it(local) -> None:
    listed = local.prefect("deployment", "schedule", "ls", "ingest-train-infer/ingest-train-infer")
    assert "cron: 30 2 * * *" in listed.stdout
    found = {one["name"]: one for one in local.ask("/deployments/filter")}
    assert all(one["description"] and one["tags"] for one in found.values())
    whole = found["ingest-train-infer"]
    (schedule,) = whole["schedules"]
    assert schedule["active"]
    assert schedule["schedule"]["timezone"] == "Europe/Berlin"
    assert whole["global_concurrency_limit"]["limit"] == 1
    assert whole["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert {name: one["work_pool_name"] for name, one in found.items()} == {
        "ingest-train-infer": "cpu",
        "ingest": "cpu",
        "train": "gpu",
        "infer": "cpu",
    }


def test_a_bare_name_that_means_nothing_or_two_things_is_said(local, tmp_path) -> None:
    none = local.prefect("deployment", "run", "nightly")
    assert none.returncode == 2
    assert none.stderr.strip() == (
        "error: deployment 'nightly' does not exist; found infer/infer, "
        "ingest-train-infer/ingest-train-infer, ingest/ingest, train/train"
    )
    flow = local.ask("/flows/", {"name": "backfill"})["id"]
    other = local.ask("/deployments/", {"name": "infer", "flow_id": flow})["id"]
    try:
        two = local.prefect("deployment", "run", "--watch", "infer")
    finally:
        local.ask(f"/deployments/{other}", method="DELETE")
        local.ask(f"/flows/{flow}", method="DELETE")
    assert two.returncode == 2
    assert two.stderr.strip() == (
        "error: deployment 'infer' is ambiguous: expected one of backfill/infer, infer/infer"
    )

    # Where no server is named, the one that `make up` started in this folder is asked.
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/local").symlink_to(local.root)
    environment = {**os.environ, "PREFECT_LOGGING_LEVEL": "ERROR"}
    environment.pop("PREFECT_API_URL", None)
    shutil.copy(ROOT / "prefect.toml", tmp_path)
    command = [sys.executable, "-m", "prefect", "deployment", "run", "nightly"]
    unnamed = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (unnamed.returncode, unnamed.stderr) == (2, none.stderr)
    (tmp_path / "prefect.toml").unlink()
    outside = local.prefect("deployment", "run", "infer", cwd=tmp_path)
    assert outside.returncode == 1
    assert "Invalid deployment name" in outside.stdout + outside.stderr


def test_cancelling_a_run_stops_the_training_on_the_other_pool(local, scenes, tmp_path) -> None:
    long = {"epochs": 1000, "filters": 4, "batch_size": 1}
    parameters = _parameters(scenes, tmp_path, train_config=long, train_on="gpu")
    parent = local.start(parameters)
    state = f"--state={tmp_path}/training"
    (job,) = _until(lambda: _processes("model.train", state))
    queued = local.start(parameters)
    _until(lambda: local.state(queued) == "AwaitingConcurrencySlot")
    assert local.state(parent) == "Running"
    (child,) = [one for one in local.children(parent) if one["state_name"] == "Running"]
    assert child["work_pool_name"] == "gpu"
    for run in (queued, parent):
        local.prefect("flow-run", "cancel", run)
    _until(lambda: local.state(parent) == "Cancelled" and local.state(child["id"]) == "Cancelled")
    _until(lambda: start_time(job) is None, 30)
    assert _processes("model.train", state) == []
    _until(lambda: local.state(queued) == "Cancelled")


IMPATIENT = """
import sys
from prefect import flow
from flows.train import train_model
from schemas.config import GateConfig, TrainConfig

dataset, output = sys.argv[1:]

@flow
def impatient() -> str:
    task = train_model.with_options(timeout_seconds=1)
    given = (dataset, output, TrainConfig(), GateConfig(), f"sqlite:///{output}/mlflow.db")
    return task(*given, return_state=True).name

print(impatient())
"""


def test_a_step_that_takes_too_long_is_stopped_and_not_tried_again(
    local, dataset, tmp_path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPATIENT, str(dataset), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PREFECT_API_URL": local.api},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "TimedOut"
    assert "retr" not in done.stderr.lower()
    assert _processes("model.train", f"--state={tmp_path}/training") == []


def test_up_twice_starts_only_what_is_missing(local) -> None:
    before = State.load(local.root)
    os.killpg(before.services["worker-gpu"].pid, signal.SIGKILL)
    _until(lambda: not before.is_running("worker-gpu"))
    report = _local("up", local.root)
    after = State.load(local.root)
    assert after.ports == before.ports
    assert sorted(after.services) == sorted(SERVICES)
    assert [n for n in SERVICES if after.services[n] != before.services[n]] == ["worker-gpu"]
    assert "stopped" not in report
