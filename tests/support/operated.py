"""The services of `make up`, for tests: real servers, real workers, the real command line."""

import json
import math
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import servers
from jobs import QUICK, ROOT, SMALL, python
from servers import free_port

from runtime.services import State, start_time

SERVICES = ["prefect", "mlflow", "worker-cpu", "worker-gpu"]
START_AUTOMATION, ZOMBIE_AUTOMATION = "Crash runs that do not start", "Crash zombie runs"


class Local:
    """The services that `up` started, with Prefect's command line and API."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.api = f"{State.load(root).url('prefect')}/api"

    def prefect(self, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PREFECT_API_URL": self.api, "COLUMNS": "400"}
        return python("-m", "prefect", *arguments, cwd=cwd, env=environment)

    def start(
        self, deployment: str, env: Mapping[str, str] | None = None, **parameters: Any
    ) -> str:
        """Starts a run as `prefect deployment run` does, which takes seconds; returns its id."""
        (found,) = [one for one in self.ask("/deployments/filter") if one["name"] == deployment]
        body = {
            "parameters": {**found["parameters"], **parameters},
            "state": {"type": "SCHEDULED"},
            "job_variables": {"env": env} if env else {},
            # Makes each request start a new run.
            "idempotency_key": str(uuid4()),
        }
        return str(self.ask(f"/deployments/{found['id']}/create_flow_run", body)["id"])

    def cancel(self, run: str) -> None:
        """Cancels a run, as often as it takes: a busy server may not answer in time."""

        def is_taken() -> bool:
            self.prefect("flow-run", "cancel", run)
            return self.state(run) in ("Cancelling", "Cancelled")

        until(is_taken)

    def ask(self, path: str, body: dict[str, Any] | None = None, method: str = "POST") -> Any:
        """Calls Prefect's API; returns the decoded response."""
        request = urllib.request.Request(
            self.api + path,
            None if method == "GET" else json.dumps(body or {}).encode(),
            {"Content-Type": "application/json"},
            method=method,
        )
        return servers.ask(request)

    def children(self, run: str) -> list[dict[str, Any]]:
        filters = {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}}
        return self.ask("/flow_runs/filter", filters)

    def logs(self, run: str) -> list[str]:
        """The log messages of a run's subflows."""
        ids = [child["id"] for child in self.children(run)]
        filters = {"logs": {"flow_run_id": {"any_": ids}}}
        return [line["message"] for line in self.ask("/logs/filter", filters)]

    def set_within(self, name: str, seconds: float) -> float:
        """Sets how long an automation waits for the events that it expects; returns the old one."""
        (found,) = [one for one in self.ask("/automations/filter") if one["name"] == name]
        kept = ("name", "description", "enabled", "trigger", "actions")
        body = {key: found[key] for key in kept}
        body["trigger"] = {**found["trigger"], "within": seconds}
        self.ask(f"/automations/{found['id']}", body, "PUT")
        return float(found["trigger"]["within"])

    def state(self, run: str) -> str:
        return self.ask(f"/flow_runs/{run}", method="GET")["state"]["name"]


def run_local(command: str, root: Path, *arguments: str) -> str:
    """Runs `up` or `down`, as make does, in its own process; returns what it prints."""
    done = python("-m", "flows.local", command, f"--root={root}", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


UP_AGAIN = """
import sys
from flows.deploy import deployments
from flows.local.services import main

deployments._prefect = lambda *_: None
print(main(["up", *sys.argv[1:]]))
"""


def up_again(root: Path, *arguments: str) -> str:
    """As `up`, but without `prefect deploy`, which takes seconds and has been run before."""
    done = python("-c", UP_AGAIN, f"--root={root}", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


RUN = ("deployment", "run", "ingest-train-infer")


def parameters_of(scenes: Path, output: Path, **others: Any) -> dict[str, Any]:
    return {
        "source": str(scenes),
        "output": str(output),
        "ingest_config": SMALL.model_dump(),
        "train_config": QUICK,
        "gate_config": {"floor": 0},
        **others,
    }


def until(what: Callable[[], Any]) -> Any:
    """As ``servers.until``, with a longer pause, for conditions that query a server."""
    return servers.until(what, pause_s=0.5)


def processes(*wanted: str) -> list[int]:
    """Ids of the processes with these words in their command line, such as a module's name.

    They are ordered by start time, so that a job comes before its children, which have the same
    words until they become another program.
    """
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if set(wanted) <= set(words):
            found.append(int(path.parent.name))
    return sorted(found, key=lambda pid: (float(start_time(pid) or math.inf), pid))


def job_of(module: str, argument: str, *others: int) -> int:
    """Waits for a job with these words in its command line; returns its process id.

    Args:
        others: ids of processes with the same words to ignore.
    """

    def found() -> list[int]:
        return [pid for pid in processes(module, argument) if pid not in others]

    return servers.until(found, "a job", 0.1)[0]


def children(pid: int) -> list[int]:
    """Ids of a process's children; empty once it has ended."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        # A thread may end in the meantime.
        with suppress(OSError):
            found += map(int, path.read_text().split())
    return found


@contextmanager
def local_services(root: Path, prefect_home: Path) -> Iterator[Local]:
    """Runs the services of `make up` during a block; MLflow's store is beside ``root``."""
    shutil.copytree(prefect_home, root / "prefect")
    State(ports={"prefect": free_port(), "mlflow": free_port()}).save(root)
    try:
        report = run_local("up", root)
        state = State.load(root)
        assert list(state.services) == SERVICES
        for name in ("prefect", "mlflow"):
            assert state.url(name) in report
        local = Local(root)
        # On a busy machine, a process may take longer to start.
        assert local.set_within(START_AUTOMATION, servers.PATIENCE_S) == 90
        yield local
        services = State.load(root).services
    finally:
        said = run_local("down", root)
    assert said == "stopped: worker-gpu, worker-cpu, mlflow, prefect"
    assert not any(start_time(service.pid) for service in services.values())
    assert State.load(root).ports == state.ports
    assert run_local("down", root).startswith("nothing runs in")
