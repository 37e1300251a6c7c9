"""Runs everything a flow needs on this machine: ``python -m flows.local up|down|status``.

That is a Prefect server, an MLflow server and one worker for each work pool, with the deployments
of prefect.yaml applied. All state is in one folder, with MLflow's store beside it; the servers
listen on 127.0.0.1 only.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.deploy.deployments import POOLS, PROJECT, add_notify_option, deploy
from flows.deploy.notify import check_webhook_url
from runtime import storage
from runtime.command_line import Parser
from runtime.errors import UserError
from runtime.locks import lock
from runtime.mlflow_store import require_in_place
from runtime.services import ROOT, State, free_port

_PREFERRED_PORTS = {"prefect": 4200, "mlflow": 5000}
_HEALTH_PATHS = {"prefect": "/api/health", "mlflow": "/health"}
_START_TIMEOUT_S = 300
_STOP_TIMEOUT_S = 40
"""More than the 30 s that a worker gives its runs to end."""


def up(root: Path, raw: str | None = None, webhook: str = "") -> str:
    """Starts the services that are not running yet and applies the deployments.

    Args:
        raw: folder or URI of the raw pairs that the deployments read if a run names none; kept
            until another is given.
        webhook: URL that is notified of failed runs, or ``off``; empty changes nothing.

    Returns:
        Addresses, and what to do next.

    Raises:
        UserError: ``raw`` does not exist, ``root`` cannot be created, MLflow's store was moved, or
            a service does not start; the message then names its log.
    """
    if raw is not None:
        raw = storage.absolute(raw)
        storage.require_folder(raw, "RAW")
    try:
        (root / "logs").mkdir(parents=True, exist_ok=True)
        _mlflow_store(root).mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"--root {root}: cannot be made: {error.strerror}") from error
    # MLflow's server does not notice, and clients would write files to the former folder.
    require_in_place(f"sqlite:///{_mlflow_store(root)}/mlflow.db")
    with lock(root / "lock", wait=True):
        state = State.load(root)
        if raw is not None:
            state.raw = raw
            state.save(root)
        for server in _HEALTH_PATHS:
            if not state.is_running(server):
                # Processes that a killed server has left behind may hold its port.
                if server in state.services:
                    state.services[server].stop(_STOP_TIMEOUT_S)
                state.ports[server] = free_port(state.ports.get(server, _PREFERRED_PORTS[server]))
        environment = _environment(root, state)
        for server, command in _server_commands(root, state).items():
            _start(root, state, server, command, environment)
        for server, path in _HEALTH_PATHS.items():
            _wait_until_healthy(root, state, server, state.url(server) + path)
        deploy(state.url("mlflow"), environment, state.raw, webhook)
        for pool in POOLS:
            command = ["-m", "prefect", "worker", "start", f"--pool={pool}", f"--name={pool}"]
            _start(root, state, f"worker-{pool}", command, environment)
        return _status_table(root, state)


def down(root: Path) -> str:
    """Stops what ``up`` started, workers first; keeps the state and the ports."""
    if not root.is_dir():
        return f"nothing runs in {root}"
    with lock(root / "lock", wait=True):
        state = State.load(root)
        running = [
            name for name in reversed(state.services) if state.services[name].has_processes()
        ]
        for name in running:
            state.services[name].stop(_STOP_TIMEOUT_S)
        state.services.clear()
        state.save(root)
    return f"stopped: {', '.join(running)}" if running else f"nothing runs in {root}"


def status(root: Path) -> str:
    """The process id of each service, and its address or log."""
    return _status_table(root, State.load(root))


def _server_commands(root: Path, state: State) -> dict[str, list[str]]:
    host = "--host=127.0.0.1"
    store = _mlflow_store(root)
    return {
        "prefect": ["-m", "prefect", "server", "start", host, f"--port={state.ports['prefect']}"],
        "mlflow": [
            *("-m", "mlflow", "server", host, f"--port={state.ports['mlflow']}", "--workers=1"),
            f"--backend-store-uri=sqlite:///{store}/mlflow.db",
            # Clients read and write files in place, whether or not the server runs.
            f"--default-artifact-root={(store / 'artifacts').as_uri()}",
            "--no-serve-artifacts",
        ],
    }


def _mlflow_store(root: Path) -> Path:
    """MLflow's folder, beside the state: commands use the same store without a server."""
    return root.parent / "mlflow"


def _environment(root: Path, state: State) -> dict[str, str]:
    return {
        **os.environ,
        "PREFECT_HOME": str(root / "prefect"),
        "PREFECT_API_URL": f"{state.url('prefect')}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLI_PROMPT": "false",
        # Prefect's server waits a minute for SQLite's lock, so its clients must wait longer.
        "PREFECT_API_REQUEST_TIMEOUT": "120",
        # Delays of 2, 4, 8, … s: 8 minutes in all. The default of 5 gives up after one minute.
        "PREFECT_CLIENT_MAX_RETRIES": "8",
        "PYTHONUNBUFFERED": "1",
        # MLflow's own jobs are not used here; without them, eight processes and 1.8 GB are saved.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def _start(
    root: Path, state: State, name: str, command: Sequence[str], environment: Mapping[str, str]
) -> None:
    command = [sys.executable, *command]
    state.start(root, name, command, _log_path(root, name), cwd=PROJECT, env=environment)


def _wait_until_healthy(root: Path, state: State, name: str, address: str) -> None:
    """Waits until a server answers.

    Raises:
        UserError: the server has ended or takes too long.
    """
    deadline = time.monotonic() + _START_TIMEOUT_S
    while state.is_running(name) and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(address, timeout=5):  # noqa: S310 - our own server
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise UserError(f"{name} does not answer at {address}; its log is {_log_path(root, name)}")


def _status_table(root: Path, state: State) -> str:
    lines = []
    for name in (*_HEALTH_PATHS, *(f"worker-{pool}" for pool in POOLS)):
        running = state.is_running(name)
        status = f"process {state.services[name].pid}" if running else "stopped"
        url_or_log = state.url(name) if running and name in _HEALTH_PATHS else _log_path(root, name)
        lines.append(f"{name:<11} {status:<16} {url_or_log}")
    if state.is_running("prefect"):
        raw = state.raw or PROJECT / "data/raw"
        program = shlex.quote(str(Path(sys.executable).with_name("prefect")))
        deployment = "ingest-train-infer/ingest-train-infer"
        lines += [
            "",
            f"Every night at 3:30 (Europe/Berlin), and where a run names no source: {raw}",
            "(make up RAW=FOLDER sets another)",
            "",
            "Next, try, in any folder",
            f"  export PREFECT_API_URL={state.url('prefect')}/api",
            f"  {program} deployment run {deployment} --watch -p source=/PATH/OF/RAW",
        ]
    return "\n".join(lines)


def _log_path(root: Path, name: str) -> Path:
    return root / "logs" / f"{name}.log"


def main(arguments: Sequence[str]) -> str:
    """The command line; returns the state of the services."""
    parser = Parser(prog="python -m flows.local", description=__doc__)
    parser.add_argument("command", choices=("up", "down", "status"))
    parser.add_argument("--root", default=ROOT, help=f"folder of all state (default: {ROOT})")
    parser.add_argument(
        "--raw", help="with up: folder or URI for the nightly run to read from now on"
    )
    add_notify_option(parser)
    args = parser.parse_args(arguments)
    check_webhook_url(args.notify)
    root = Path(args.root).absolute()
    if args.command == "up":
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            # So a shell starts a command in the background. Workers stop themselves by SIGINT, and
            # would hear of no `down` if they inherited this.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return up(root, args.raw, args.notify)
    return down(root) if args.command == "down" else status(root)
