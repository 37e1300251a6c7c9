"""A Prefect server, MLflow, two workers and the command line, as `make up` starts them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pytest
from jobs import IN_MEMORY, RETRIED, ROOT, SMALL, python
from operated import (
    RUN,
    SERVICES,
    job_of,
    parameters_of,
    processes,
    run_local,
    until,
    up_again,
)

from model.version_tags import KEY_TAG
from runtime.mlflow_registry import NotReadError, registry
from runtime.services import State, start_time


# Slow: two trainings and two inferences, each in a process of its own.
def test_models_are_the_same_with_and_without_the_server(local, dataset, monkeypatch) -> None:
    server = State.load(local.root).url("mlflow")
    work = local.root.parents[1]
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def last_line(module: str, *arguments: str) -> str:
        done = python("-m", module, *arguments, cwd=work)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    training = [
        f"--dataset={dataset}",
        "--architecture=unet",
        "--filters=2",
        "--normalisation=none",
        "--augment=off",
    ]
    training += ["--loss=cross-entropy", "--model_name=shared"]
    at_server = f"--tracking_uri={server}"
    first = last_line("model.train", *training, "--epochs=1", "--floor=0")
    second = last_line("model.train", *training, "--epochs=2", "--promote=always", at_server)
    assert [first, second] == ["models:/shared/1", "models:/shared/2"]

    # The registry reads both ways, without MLflow.
    read = []
    for store in (server, f"sqlite:///{work}/outputs/mlflow/mlflow.db"):
        with registry(store) as opened:
            champion = opened.version_by_alias("shared", "champion")
            assert champion == opened.version_by_uri(second) == opened.version("shared", 2)
            assert opened.versions_by_tag("shared", KEY_TAG, champion.tags[KEY_TAG]) == [champion]
            read.append((champion, champion.description, opened.run(champion.run_id)))
            with pytest.raises(NotReadError):
                opened.version_by_uri("models:/shared/3")
    assert read[0] == read[1]
    assert read[0][2][0] == "FINISHED"

    # Each version is read the other way, including its files, which the job opens.
    assert last_line("model.gate", "--rollback=shared") == first
    for model, store in ((first, [at_server]), (second, [])):
        output = f"{work}/outputs/predictions"
        places = (f"--dataset={dataset}", f"--output={output}")
        last_line("beam.infer", f"--model={model}", *places, *store, *IN_MEMORY)
    rows = f"FROM '{work}/outputs/predictions/masks/**/*.parquet' SELECT version, count(*)"
    assert duckdb.sql(f"{rows} GROUP BY ALL ORDER BY ALL").fetchall() == [("v1", 40), ("v2", 40)]

    # The requests of MLflow's pages: the runs of both versions, and the files of each.
    def ask(page: str, **given: str) -> Any:
        query = urllib.parse.urlencode(given)
        with urllib.request.urlopen(f"{server}/{page}?{query}") as answer:
            return answer.read()

    for number in ("1", "2"):
        version = json.loads(
            ask("api/2.0/mlflow/model-versions/get", name="shared", version=number)
        )
        run, source = (version["model_version"][key] for key in ("run_id", "source"))
        listed = json.loads(ask("ajax-api/2.0/mlflow/artifacts/list", run_id=run))
        card = next(one["path"] for one in listed["files"] if one["path"].endswith(".md"))
        assert ask("get-artifact", run_uuid=run, path=card).startswith(b"#")
        file = f"ajax-api/2.0/mlflow/logged-models/{source.rpartition('/')[2]}/artifacts/files"
        assert b"python_function" in ask(file, artifact_file_path="MLmodel")


# Slow: two whole runs by real workers; the first trains on the other pool.
def test_the_run_that_the_readme_shows(local, scenes, tmp_path) -> None:
    parameters = json.dumps(parameters_of(scenes, tmp_path))
    # The worker of the other pool trains the model; then the parent itself finds it again.
    done = local.prefect(
        *(*RUN, "--watch", "-p", "train_on=gpu", "-p", "max_drift=0", "--params", parameters)
    )
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

    # All images are not distributed as those of the validation split.
    event = {"event": {"name": ["lyft.drift.exceeded"]}}
    (drifted,) = until(lambda: local.ask("/events/filter", {"filter": event})["events"])
    assert drifted["payload"]["distance"] > drifted["payload"]["max_drift"] == 0
    assert drifted["resource"]["prefect.resource.name"] == model["model"]
    related = {one["prefect.resource.role"] for one in drifted["related"]}
    assert {"flow-run", "flow", "task-run"} <= related

    pools = {one["name"].split("-")[0]: one["work_pool_name"] for one in local.children(first)}
    assert pools == {"ingest": None, "train": "gpu", "infer": None}
    (page,) = (tmp_path / "reports").rglob("*.html")
    mlflow = State.load(local.root).url("mlflow")
    for address in (f"{local.api.removesuffix('/api')}/runs/flow-run/{first}", f"{mlflow}/#/runs/"):
        assert address in page.read_text(encoding="utf-8")
    names = {one["name"] for one in local.ask("/flow_runs/filter", {})}
    (dataset,) = (tmp_path / "datasets/small").glob("[!.]*")
    assert {
        f"ingest-train-infer-{scenes.name}",
        f"ingest-{scenes.name}",
        f"train-on-small-{dataset.name}",
        f"infer-with-{model['model'].removeprefix('models:/').replace('/', '-')}",
    } <= names
    assert {"ingest 32x48 nearest", "train unet 2 filters 32x48"} == set(
        json.loads((tmp_path / "durations.json").read_text())
    )

    again = local.prefect(
        "deployment", "run", "--watch", f"{RUN[2]}/{RUN[2]}", "--params", parameters
    )
    assert again.returncode == 0, again.stdout + again.stderr
    (second,) = re.findall(r"UUID: (\S+)", again.stdout)
    until(lambda: "\n".join(local.logs(second)).count("nothing has changed") == 3)
    assert duckdb.sql(flow_run.format(tmp_path)).fetchall() == [(first,)]


def test_a_parameter_out_of_bounds_is_refused_before_the_run(local) -> None:

    def made(runs: list[dict[str, Any]]) -> set[str]:
        return {one["id"] for one in runs if not one["auto_scheduled"]}

    before = local.ask("/flow_runs/filter", {})
    for given, field in (
        ({"train_config": {"epochs": -1}}, "train_config.epochs"),
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
    assert "cron: 30 3 * * *" in listed.stdout
    found = {one["name"]: one for one in local.ask("/deployments/filter")}
    assert all(one["description"] and one["tags"] for one in found.values())
    whole = found["ingest-train-infer"]
    (schedule,) = whole["schedules"]
    assert schedule["active"]
    assert schedule["schedule"]["timezone"] == "Europe/Berlin"

    def nights() -> set[tuple[int, int]]:
        of_whole = {"flow_runs": {"deployment_id": {"any_": [whole["id"]]}}}
        runs = [one for one in local.ask("/flow_runs/filter", of_whole) if one["auto_scheduled"]]
        berlin = ZoneInfo("Europe/Berlin")
        starts = [datetime.fromisoformat(one["expected_start_time"]) for one in runs]
        return {(at.hour, at.minute) for at in (one.astimezone(berlin) for one in starts)}

    # Checks the runs that the server's scheduler has planned, not only the schedule it was given.
    assert until(nights) == {(3, 30)}
    assert whole["global_concurrency_limit"]["limit"] == 1
    assert whole["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert {name: one["work_pool_name"] for name, one in found.items()} == {
        "ingest-train-infer": "cpu",
        "ingest": "cpu",
        "train": "gpu",
        "infer": "cpu",
        "backfill": "cpu",
    }


def test_nightly_run_reads_the_last_given_raw_folder(local, scenes) -> None:
    def sources() -> dict[str, str | None]:
        found = local.ask("/deployments/filter")
        return {one["name"]: one["parameters"].get("source") for one in found}

    whole = {"backfill": None, "train": None, "infer": None}
    assert sources() == {**whole, "ingest-train-infer": "data/raw", "ingest": "data/raw"}
    for up in (
        lambda: up_again(local.root, f"--raw={scenes}"),
        lambda: run_local("up", local.root),
    ):
        report = up()
        assert sources() == {**whole, "ingest-train-infer": str(scenes), "ingest": str(scenes)}
        assert f"names no source: {scenes}\n" in report
    program = Path(sys.executable).with_name("prefect")
    assert f"{program} deployment run ingest-train-infer/ingest-train-infer --watch" in report


def test_unknown_or_ambiguous_bare_name_is_refused(local, tmp_path) -> None:
    none = local.prefect("deployment", "run", "nightly")
    assert none.returncode == 2
    assert none.stderr.strip() == (
        "error: deployment 'nightly' does not exist; found backfill/backfill, infer/infer, "
        "ingest-train-infer/ingest-train-infer, ingest/ingest, train/train"
    )
    flow = local.ask("/flows/", {"name": "hourly"})["id"]
    other = local.ask("/deployments/", {"name": "infer", "flow_id": flow})["id"]
    try:
        two = local.prefect("deployment", "run", "--watch", "infer")
    finally:
        local.ask(f"/deployments/{other}", method="DELETE")
        local.ask(f"/flows/{flow}", method="DELETE")
    assert two.returncode == 2
    assert two.stderr.strip() == (
        "error: deployment 'infer' is ambiguous: expected one of hourly/infer, infer/infer"
    )

    # If no server is named, the one that `make up` started in this folder is used.
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/local").symlink_to(local.root)
    environment = {**os.environ, "PREFECT_LOGGING_LEVEL": "ERROR"}
    environment.pop("PREFECT_API_URL", None)
    shutil.copy(ROOT / "prefect.toml", tmp_path)
    command = ("-m", "prefect", "deployment", "run", "nightly")
    unnamed = python(*command, cwd=tmp_path, env=environment)
    assert (unnamed.returncode, unnamed.stderr) == (2, none.stderr)
    (tmp_path / "prefect.toml").unlink()
    outside = local.prefect("deployment", "run", "infer", cwd=tmp_path)
    assert outside.returncode == 1
    assert "Invalid deployment name" in outside.stdout + outside.stderr


UNATTENDED = """
from prefect import flow
from flows.tasks import remote_training
from schemas.config import GateConfig, TrainConfig

remote_training.START_TIMEOUT_S = 3

@flow(name="unattended")
def unattended() -> None:
    remote_training.train_remotely("none", "none", TrainConfig(), GateConfig(), "none")

print(unattended(return_state=True).message)
"""


def test_training_that_no_worker_starts_is_cancelled(local) -> None:
    def pause(is_paused: bool) -> None:
        local.ask("/work_pools/gpu", {"is_paused": is_paused}, "PATCH")

    pause(True)
    try:
        done = python("-c", UNATTENDED, env={**os.environ, "PREFECT_API_URL": local.api})
        assert done.returncode == 0, done.stderr
        assert "no worker of pool gpu has started flow run" in done.stdout.splitlines()[-1]
        (parent,) = (
            one["id"]
            for one in local.ask("/flow_runs/filter", {"flows": {"name": {"any_": ["unattended"]}}})
        )
        (child,) = local.children(parent)
        assert child["state_name"] == "Cancelled"
    finally:
        pause(False)


ALONE = """
import sys
from flows.ingest_train_infer import ingest_train_infer
from schemas.config import IngestConfig, TrainConfig

source, output, ingest = sys.argv[1:]
ingest_train_infer(
    source,
    output,
    tracking_uri=f"sqlite:///{output}/mlflow.db",
    ingest_config=IngestConfig.model_validate_json(ingest),
    train_config=TrainConfig(architecture="unet", epochs=1000, filters=2, batch_size=1),
)
"""


# Slow: a flow asks the server for its state only from time to time.
def test_cancelled_flow_without_a_worker_ends_its_job(local, scenes, tmp_path) -> None:
    """Such as one whose worker has been through an outage of the server."""
    # Its job stands still after an epoch, and takes no processor time from others.
    (held := tmp_path / "held").mkdir()
    environment = {**os.environ, "PREFECT_API_URL": local.api}
    environment |= {"HELD_AT": "state.npz", "HELD_IN": str(held)}
    environment["PYTHONPATH"] = f"{ROOT}/tests/support/held:{ROOT}"
    arguments = [str(scenes), str(tmp_path), SMALL.model_dump_json()]
    with subprocess.Popen(
        [sys.executable, "-c", ALONE, *arguments], cwd=ROOT, env=environment
    ) as flow:
        job = job_of("model.train", f"--state={tmp_path}/training")
        (run,) = [
            one["id"]
            for one in local.ask("/flow_runs/filter")
            if one["parameters"].get("output") == str(tmp_path) and not one["parent_task_run_id"]
        ]
        local.cancel(run)
        try:
            until(lambda: start_time(job) is None)
        except AssertionError:
            flow.kill()
            raise
    until(lambda: local.state(run) == "Cancelled")
    # The server follows with the subflow.
    until(lambda: {one["state_name"] for one in local.children(run)} == {"Completed", "Cancelled"})


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


def test_timed_out_step_is_stopped_and_not_retried(local, dataset, tmp_path) -> None:
    environment = {**os.environ, "PREFECT_API_URL": local.api}
    done = python("-c", IMPATIENT, str(dataset), str(tmp_path), env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "TimedOut"
    assert not RETRIED.search(done.stderr)
    assert processes("model.train", f"--state={tmp_path}/training") == []


def test_up_twice_starts_only_what_is_missing(local) -> None:
    before = State.load(local.root)
    os.killpg(before.services["worker-gpu"].pid, signal.SIGKILL)
    until(lambda: not before.is_running("worker-gpu"))
    report = up_again(local.root)
    after = State.load(local.root)
    assert after.ports == before.ports
    assert sorted(after.services) == sorted(SERVICES)
    assert [n for n in SERVICES if after.services[n] != before.services[n]] == ["worker-gpu"]
    assert "stopped" not in report
