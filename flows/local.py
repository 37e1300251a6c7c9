"""Everything a flow needs, on this machine alone: ``python -m flows.local up|down|status``.

A Prefect server, an MLflow server and one worker for each work pool, with the deployments of
prefect.yaml applied. All state lies in one folder; servers listen on 127.0.0.1 alone.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from flows.state import Service, State, start_time
from schemas.cli import run_main
from schemas.errors import UserError

POOLS = ("cpu", "gpu")
ROOT = "outputs/local"
PROJECT = Path(__file__).parents[1]

_PREFERRED_PORTS = {"prefect": 4200, "mlflow": 5000}
_HEALTH = {"prefect": "/api/health", "mlflow": "/health"}
_START_S = 180
_STOP_S = 40
"""More than the 30 s that a worker gives its runs to end."""


def up(root: Path) -> str:
    """Starts what does not run yet and applies the deployments.

    Returns:
        Addresses, and what to do next.

    Raises:
        UserError: a service does not come up; names its log.
    """
    (root / "logs").mkdir(parents=True, exist_ok=True)
    (root / "mlflow").mkdir(exist_ok=True)
    with _locked(root):
        state = State.load(root)
        for server in _HEALTH:
            if not state.is_running(server):
                state.ports[server] = _port(state.ports.get(server, _PREFERRED_PORTS[server]))
        environment = _environment(root, state)
        for server, command in _servers(root, state).items():
            _start(root, state, server, command, environment)
        for server, path in _HEALTH.items():
            _wait(root, state, server, state.url(server) + path)
        for pool in _missing_pools(environment):
            _prefect(["work-pool", "create", pool, "--type=process"], environment)
        _prefect(["deploy", "--all"], environment)
        _point_deployments_at(state.url("mlflow"), environment)
        for pool in POOLS:
            command = ["-m", "prefect", "worker", "start", f"--pool={pool}", f"--name={pool}"]
            _start(root, state, f"worker-{pool}", command, environment)
        return _report(root, state)


def down(root: Path) -> str:
    """Stops what ``up`` started, workers first; state and ports stay."""
    if not root.is_dir():
        return f"nothing runs in {root}"
    with _locked(root):
        state = State.load(root)
        running = [name for name in reversed(state.services) if state.is_running(name)]
        for name in running:
            state.services[name].stop(_STOP_S)
        state.services.clear()
        state.save(root)
    return f"stopped: {', '.join(running)}" if running else f"nothing runs in {root}"


def status(root: Path) -> str:
    """What runs, where, and since which process."""
    return _report(root, State.load(root))


def _servers(root: Path, state: State) -> dict[str, list[str]]:
    here = "--host=127.0.0.1"
    return {
        "prefect": [
            *("-m", "prefect", "server", "start", here),
            f"--port={state.ports['prefect']}",
        ],
        "mlflow": [
            *("-m", "mlflow", "server", here, f"--port={state.ports['mlflow']}", "--workers=1"),
            f"--backend-store-uri=sqlite:///{root}/mlflow/mlflow.db",
            f"--artifacts-destination={root}/mlflow/artifacts",
            "--serve-artifacts",
        ],
    }


def _environment(root: Path, state: State) -> dict[str, str]:
    return {
        **os.environ,
        "PREFECT_HOME": str(root / "prefect"),
        "PREFECT_API_URL": f"{state.url('prefect')}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLI_PROMPT": "false",
        "PYTHONUNBUFFERED": "1",
    }


def _start(
    root: Path, state: State, name: str, command: Sequence[str], environment: Mapping[str, str]
) -> None:
    """Starts a service that does not run, and remembers it at once."""
    if state.is_running(name):
        return
    with _log(root, name).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    state.services[name] = Service(pid=process.pid, started=start_time(process.pid) or "")
    state.save(root)


def _wait(root: Path, state: State, name: str, address: str) -> None:
    """Waits until a server answers.

    Raises:
        UserError: it has ended, or takes too long.
    """
    deadline = time.monotonic() + _START_S
    while state.is_running(name) and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(address, timeout=5):  # noqa: S310 - our own server
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise UserError(f"{name} does not answer at {address}; its log is {_log(root, name)}")


def _prefect(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *arguments],
        cwd=PROJECT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise UserError(f"prefect {' '.join(arguments)} failed:\n{done.stdout.strip()}")


def _missing_pools(environment: Mapping[str, str]) -> list[str]:
    from prefect.client.orchestration import SyncPrefectClient

    with SyncPrefectClient(environment["PREFECT_API_URL"]) as client:
        known = {pool.name for pool in client.read_work_pools()}
    return [pool for pool in POOLS if pool not in known]


def _point_deployments_at(mlflow: str, environment: Mapping[str, str]) -> None:
    """Gives every deployment that has a ``tracking_uri`` the server's."""
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.actions import DeploymentUpdate

    with SyncPrefectClient(environment["PREFECT_API_URL"]) as client:
        for one in client.read_deployments():
            if "tracking_uri" in (one.parameter_openapi_schema or {}).get("properties", {}):
                parameters = {**one.parameters, "tracking_uri": mlflow}
                client.update_deployment(one.id, DeploymentUpdate(parameters=parameters))


def _report(root: Path, state: State) -> str:
    lines = []
    for name in (*_HEALTH, *(f"worker-{pool}" for pool in POOLS)):
        running = state.is_running(name)
        what = state.url(name) if running and name in _HEALTH else ""
        how = f"process {state.services[name].pid}" if running else "stopped"
        lines.append(f"{name:<11} {how:<16} {what or _log(root, name)}")
    if state.is_running("prefect"):
        api = f"{state.url('prefect')}/api"
        lines += [
            "",
            "Next, try",
            "  .venv/bin/prefect deployment run ingest-train-infer --watch -p source=FOLDER",
            f"outside this folder, after  export PREFECT_API_URL={api}",
        ]
    return "\n".join(lines)


def _port(wanted: int) -> int:
    """The wanted port where it is free, else any that is."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            # As servers do: a port whose last connections are still closing is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise UserError("no port is free on 127.0.0.1")


def _log(root: Path, name: str) -> Path:
    return root / "logs" / f"{name}.log"


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One ``up`` or ``down`` at a time."""
    with (root / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str]) -> str:
    """The command line; returns what runs where."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -m flows.local", description=__doc__
    )
    commands = {"up": up, "down": down, "status": status}
    parser.add_argument("command", choices=commands)
    parser.add_argument("--root", default=ROOT, help=f"folder of all state (default: {ROOT})")
    args = parser.parse_args(arguments)
    return commands[args.command](Path(args.root).absolute())


if __name__ == "__main__":
    sys.exit(run_main(main))
