"""`python -m flows.deploy` on a Prefect server that asks for a password."""

import base64
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import servers
import yaml
from jobs import ROOT, Job
from operated import until
from prefect.events.schemas.automations import AutomationCore
from prefect.workers.process import ProcessWorker
from servers import free_port, serving

from flows.deploy import deployments
from flows.deploy.deployments import AUTOMATIONS
from flows.doctor import check_prefect

USER = "pipeline:a password"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("prefect")
    url = f"http://127.0.0.1:{(port := free_port())}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host=127.0.0.1"]
    settings = {"PREFECT_HOME": str(folder), "PREFECT_SERVER_API_AUTH_STRING": USER}
    log = folder / "server.log"
    with serving([*command, f"--port={port}"], f"{url}/health", log, settings):
        yield url


@pytest.fixture
def signed_in(api: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PREFECT_API_URL", api)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", USER)
    return api


@pytest.fixture
def deployed(signed_in: str, job: Job) -> None:
    """Deploys, unless another test has done so already."""
    if not ask("/deployments/filter", {"deployments": {"name": {"any_": ["train"]}}}):
        done = job("flows.deploy", "--tracking_uri=http://mlflow:5000")
        assert done.stdout.startswith(f"deployed to {signed_in}: "), done.stderr


OURS = ("ingest-train-infer", "ingest", "train", "infer", "backfill")


def ask(path: str, body: dict[str, Any] | None = None) -> Any:
    """Calls Prefect's API with the password."""
    basic = base64.b64encode(USER.encode()).decode()
    request = urllib.request.Request(
        os.environ["PREFECT_API_URL"] + path,
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": f"Basic {basic}"},
    )
    return servers.ask(request)


def prefect(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "prefect", *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "400"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_deploy_is_idempotent_and_accepts_bare_names(signed_in: str, job: Job):
    made = ask("/flows/", {"name": "theirs"})["id"]
    theirs = {"name": "theirs", "flow_id": made, "parameters": {"tracking_uri": "http://theirs"}}
    schema = {"type": "object", "properties": {"tracking_uri": {"type": "string"}}}
    foreign = ask("/deployments/", {**theirs, "parameter_openapi_schema": schema})
    first = job("flows.deploy", "--tracking_uri=http://first:5000")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith(f"deployed to {signed_in}: ")
    named = first.stdout.strip().partition(f"{signed_in}: ")[2].split(", ")
    assert named == sorted(f"{one}/{one}" for one in OURS)
    assert ask(f"/deployments/{foreign['id']}") == foreign
    again = job("flows.deploy", "--tracking_uri=http://second:5000")
    assert again.stdout == first.stdout
    shown = ask("/deployments/name/train/train")
    assert shown["parameters"]["tracking_uri"] == "http://second:5000"
    template = ProcessWorker.get_default_base_job_template()
    pools = {one["name"]: one for one in ask("/work_pools/filter", {})}
    for name in ("cpu", "gpu"):
        assert (pools[name]["type"], pools[name]["base_job_template"]) == ("process", template)
    started = prefect("deployment", "run", "ingest", "-p", "source=nowhere")
    assert started.returncode == 0, started.stdout + started.stderr
    assert {one.level for one in check_prefect(signed_in)} == {"ok", "note"}


@pytest.mark.usefixtures("deployed")
def test_webhook_is_set_replaced_and_removed(job_here: Job, monkeypatch: pytest.MonkeyPatch):
    # Prefect's own command, which takes seconds and knows nothing of the webhook.
    monkeypatch.setattr(deployments, "_prefect", lambda *_: None)

    def told(*arguments: str) -> list[str]:
        done = job_here("flows.deploy", "--tracking_uri=http://mlflow:5000", *arguments)
        assert done.returncode == 0, done.stderr
        assert "secret" not in done.stdout + done.stderr
        return [one["name"] for one in ask("/automations/filter", {}) if "Notify" in one["name"]]

    assert told() == []
    for address in ("--notify=http://127.0.0.1:9/secret-1", "--notify=https://a.b/secret-2"):
        assert told(address) == ["Notify of failed runs"]
    assert told() == ["Notify of failed runs"]
    assert told("--notify=off") == []
    assert told("--notify=off") == []


@pytest.mark.usefixtures("deployed")
def test_nightly_runs_are_scheduled():
    nightly = ask("/deployments/name/ingest-train-infer/ingest-train-infer")["id"]
    runs = {"deployment_id": {"any_": [nightly]}, "state": {"type": {"any_": ["SCHEDULED"]}}}
    until(lambda: ask("/flow_runs/filter", {"flow_runs": runs}))


def test_wrong_password_is_refused(api: str, job_here: Job, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PREFECT_API_URL", api)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{api}/admin/version")
    for wrong in ("", "pipeline:another"):
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", wrong)
        done = job_here("flows.deploy", "--tracking_uri=http://mlflow:5000")
        assert done.returncode == 2
        assert "PREFECT_API_AUTH_STRING must be the server's" in done.stderr
        assert "Traceback" not in done.stderr
        (finding,) = check_prefect(api)
        assert (finding.level, finding.found) == ("fix", f"{api} rejects the credentials")


def test_missing_server_is_reported(job_here: Job, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    done = job_here("flows.deploy", "--tracking_uri=http://mlflow:5000")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no server is named; set PREFECT_API_URL")


def test_start_timeout_applies_to_these_deployments_only() -> None:
    """Others on the same server may fetch an image for minutes before their flow begins."""
    described = yaml.safe_load((ROOT / AUTOMATIONS).read_text(encoding="utf-8"))
    (one,) = [one for one in described if one["name"] == "Crash runs that do not start"]
    related = AutomationCore.model_validate(one).trigger.match_related
    ours = {"prefect.resource.role": "deployment", "prefect.resource.name": "train"}
    assert related.matches(ours)
    assert not related.matches({**ours, "prefect.resource.name": "others"})
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))
    assert related["prefect.resource.name"] == [one["name"] for one in deployments["deployments"]]
