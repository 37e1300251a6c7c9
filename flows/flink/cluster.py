"""Runs a Flink session cluster, on this machine or on several.

``up`` starts a JobManager and some TaskManagers on 127.0.0.1 and free ports, with all state in one
folder; run again, it starts those that are not running, such as a TaskManager that was killed.
``down`` stops them and ``status`` lists them. ``jobmanager`` and ``taskmanager`` run one process in
the foreground, for containers, system services and clusters of several machines.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from beam.runners.flink_api import FlinkCluster
from flows.flink.processes import REST_PORT, RPC_PORT, Processes
from runtime.command_line import Parser
from runtime.errors import UnavailableError, UserError
from runtime.locks import try_lock
from runtime.processor import available_cores
from runtime.services import State, free_port

ROOT = "outputs/flink"
JOB_MANAGER = "jobmanager"
TASK_MANAGERS = 2
ALL_INTERFACES = "0.0.0.0"  # noqa: S104 - other machines connect; up listens on 127.0.0.1

_START_TIMEOUT_S = 120
_STOP_TIMEOUT_S = 20


def up(root: Path, task_managers: int = TASK_MANAGERS, slots: int | None = None) -> str:
    """Starts the processes that are not running yet.

    Args:
        slots: number of slots of each TaskManager; by default one per core, so that a single
            TaskManager has enough for a job if the others are lost.

    Returns:
        The JobManager's address, for ``--flink_master``, and the processes that run.

    Raises:
        UserError: a program is missing, or a process does not start; the message then names its
            log.
    """
    (root / "logs").mkdir(parents=True, exist_ok=True)
    state = State.load(root)
    if not state.is_running(JOB_MANAGER):
        down(root)
        state = State.load(root)
        state.ports = {"rest": free_port(), "rpc": free_port()}
        state.save(root)
    localhost, cores = "127.0.0.1", available_cores()
    processes = Processes(
        folder=root,
        job_manager=localhost,
        host=localhost,
        bind=localhost,
        slots=slots or cores,
        parallelism=cores,
        **state.ports,
    )
    processes.configure()
    _start(state, JOB_MANAGER, processes, processes.job_manager_command())
    names = [f"taskmanager-{index + 1}" for index in range(task_managers)]
    new_ids = []
    for name in names:
        resource_id = f"{name}-{time.time_ns()}"
        if _start(state, name, processes, processes.task_manager_command(resource_id)):
            new_ids.append(resource_id)
    _wait_for_slots(root, state, names, new_ids)
    return status(root)


def down(root: Path) -> str:
    """Stops what ``up`` started, TaskManagers first."""
    state = State.load(root)
    running = [name for name in reversed(state.services) if state.is_running(name)]
    for name in running:
        state.services[name].stop(_STOP_TIMEOUT_S)
    state.services.clear()
    if root.is_dir():
        state.save(root)
        shutil.rmtree(root / "tmp", ignore_errors=True)
    return f"stopped: {', '.join(running)}" if running else f"nothing runs in {root}"


def status(root: Path) -> str:
    """The running processes with their ids, and the JobManager's address."""
    state = State.load(root)
    if not state.is_running(JOB_MANAGER):
        return f"nothing runs in {root}"
    lines = [
        f"{name:<14} process {service.pid}"
        for name, service in state.services.items()
        if service.is_running()
    ]
    return "\n".join([*lines, "", f"dashboard      {state.url('rest')}", _hint(state)])


def master(root: Path) -> str:
    """Address for ``--flink_master``.

    Raises:
        UserError: no cluster runs in ``root``.
    """
    state = State.load(root)
    if not state.is_running(JOB_MANAGER):
        raise UserError(f"no Flink cluster runs in {str(root)!r}; `python -m flows.flink up`")
    return f"127.0.0.1:{state.ports['rest']}"


def run_job_manager(root: Path, host: str, bind: str, rest: int, rpc: int) -> NoReturn:
    """Replaces this process with a JobManager.

    Args:
        root: folder in which the process's own folder is created.
        host: name or address at which the other processes reach this one.
        bind: address to listen on; must include 127.0.0.1, where the process reaches itself.
        rest: port for jobs and browsers.
        rpc: port for TaskManagers.

    Raises:
        UserError: Java or Flink is missing.
    """
    processes = Processes(
        folder=root / f"{JOB_MANAGER}-{host}",
        job_manager=host,
        host=host,
        bind=bind,
        slots=1,
        rest=rest,
        rpc=rpc,
    )
    _exec_flink(processes, processes.job_manager_command())


def run_task_manager(
    root: Path, host: str, bind: str, job_manager: str, slots: int | None
) -> NoReturn:
    """Replaces this process with a TaskManager that is named after its host.

    To use more of a host, give its TaskManager more slots; a second one would have the same name.

    Args:
        root: folder in which the process's own folder is created.
        host: name or address at which the other processes reach this one.
        bind: address to listen on.
        job_manager: ``host`` or ``host:port`` of the JobManager.
        slots: number of subtasks of a step that it can run at once; by default one per core.

    Raises:
        UserError: Java, Flink or Beam's runner is missing, or ``job_manager`` is malformed.
    """
    job_manager_host, _, port = job_manager.partition(":")
    if not job_manager_host or not (port or str(RPC_PORT)).isdecimal():
        raise UserError(f"--jobmanager={job_manager}: expected <host> or <host>:<port>")
    processes = Processes(
        folder=root / f"taskmanager-{host}",
        job_manager=job_manager_host,
        host=host,
        bind=bind,
        slots=slots or available_cores(),
        rpc=int(port or RPC_PORT),
    )
    _exec_flink(processes, processes.task_manager_command(host))


def _exec_flink(processes: Processes, command: list[str]) -> NoReturn:
    """Replaces this process with Flink, so that signals reach Flink directly.

    Clears the scratch folder first: a Flink process that a signal ends leaves files there.

    Raises:
        UserError: another process is using the folder.
    """
    folder = processes.folder
    folder.mkdir(parents=True, exist_ok=True)
    # Never closed, so that the folder stays locked until Flink ends.
    lock = (folder / "lock").open("a")
    if not try_lock(lock):
        raise UserError(
            f"{folder}: another process is using this folder; stop it, or choose another --host "
            "or --root"
        )
    os.set_inheritable(lock.fileno(), True)
    shutil.rmtree(folder / "tmp", ignore_errors=True)
    processes.configure()
    os.chdir(folder)
    os.execve(command[0], command, processes.environment())  # noqa: S606 - no shell is wanted


def _hint(state: State) -> str:
    return f"run jobs with  --runner=FlinkRunner --flink_master=127.0.0.1:{state.ports['rest']}"


def _start(state: State, name: str, processes: Processes, command: Sequence[str]) -> bool:
    root = processes.folder
    environment = processes.environment()
    return state.start(root, name, command, _log_path(root, name), cwd=root, env=environment)


def _wait_for_slots(
    root: Path, state: State, task_managers: Sequence[str], new_ids: Sequence[str]
) -> None:
    """Waits until new TaskManagers have reported their slots to the JobManager.

    Raises:
        UserError: a process has ended or takes too long.
    """
    cluster = FlinkCluster(state.url("rest"))
    deadline = time.monotonic() + _START_TIMEOUT_S
    missing = set(new_ids)
    while time.monotonic() < deadline:
        for name in (JOB_MANAGER, *task_managers):
            if not state.is_running(name):
                raise UserError(f"{name} has ended; its log is {_log_path(root, name)}")
        with suppress(UnavailableError, RuntimeError):
            # A TaskManager is listed a moment before its slots are.
            missing -= {name for name, slots in cluster.task_managers().items() if slots}
        if not missing:
            return
        time.sleep(0.2)
    names = ", ".join(sorted(missing))
    raise UserError(
        f"Flink: {names} not known to the JobManager within {_START_TIMEOUT_S} s; "
        f"logs are in {root / 'logs'}"
    )


def _log_path(root: Path, name: str) -> Path:
    return root / "logs" / f"{name}.out"


def main(arguments: Sequence[str]) -> str:
    """The command line; returns what to print, unless Flink replaces the process."""
    parser = _parser()
    args = parser.parse_args(arguments)
    for name in ("slots", "task_managers"):
        if (count := getattr(args, name, None)) is not None and count < 1:
            parser.error(f"--{name}={count}: expected at least 1")
    root = Path(args.root).absolute()
    match args.command:
        case "up":
            return up(root, args.task_managers, args.slots)
        case "down":
            return down(root)
        case "status":
            return status(root)
        case "jobmanager":
            run_job_manager(root, args.host, args.bind, args.rest_port, args.rpc_port)
        case _:
            run_task_manager(root, args.host, args.bind, args.jobmanager, args.slots)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m flows.flink", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    up, _, _, jobmanager, taskmanager = commands = [
        subparsers.add_parser(name, help=text, description=text)
        for name, text in (
            ("up", "start the processes that are not running on this machine"),
            ("down", "stop the processes that up has started"),
            ("status", "list the processes that run on this machine"),
            ("jobmanager", "run a JobManager in the foreground"),
            ("taskmanager", "run a TaskManager in the foreground"),
        )
    ]
    for command in commands:
        command.add_argument("--root", default=ROOT, help=f"folder of all state (default: {ROOT})")
    up.add_argument(
        "--task_managers", type=int, default=TASK_MANAGERS, help=f"(default: {TASK_MANAGERS})"
    )
    for command in (up, taskmanager):
        command.add_argument("--slots", type=int, help="of each TaskManager (default: one a core)")
    for command in (jobmanager, taskmanager):
        command.add_argument(
            "--host", required=True, help="address at which the other processes reach it"
        )
        command.add_argument(
            "--bind",
            default=ALL_INTERFACES,
            help=f"address to listen on; connections need no password (default: {ALL_INTERFACES})",
        )
    for port, default in (("rest", REST_PORT), ("rpc", RPC_PORT)):
        jobmanager.add_argument(
            f"--{port}_port", type=int, default=default, help=f"(default: {default})"
        )
    taskmanager.add_argument(
        "--jobmanager", required=True, help=f"its host, with :port where that is not {RPC_PORT}"
    )
    return parser
