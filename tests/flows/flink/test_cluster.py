"""Flink's processes in the foreground, as in containers and on clusters of several machines."""

import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import clusters
import psutil
import pytest
import servers
import yaml
from jobs import SMALL, Job, started
from servers import until

from beam import tools
from beam.runners.flink_api import FlinkCluster
from flows.flink_demo import published_digests
from runtime.command_line import to_arguments
from runtime.errors import UnavailableError

pytestmark = pytest.mark.slow

LEADER, TASK_MANAGERS = "127.0.0.1", ("127.0.0.2", "127.0.0.3")
"""Loopback addresses, one for each machine."""


@pytest.fixture
def master() -> str:
    clusters.need(tools.java, tools.flink_jars, tools.flink_runner)
    return f"{LEADER}:{servers.free_port()}"


@pytest.fixture
def processes(master: str, tmp_path: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """A JobManager and two TaskManagers, by host."""
    rpc = servers.free_port()
    commands = {LEADER: ["jobmanager", f"--rest_port={master.partition(':')[2]}"]}
    commands[LEADER].append(f"--rpc_port={rpc}")
    for host in TASK_MANAGERS:
        commands[host] = ["taskmanager", f"--jobmanager={LEADER}:{rpc}", "--slots=1"]
    running = {}
    try:
        for host, command in commands.items():
            place = [f"--host={host}", f"--bind={host}", f"--root={tmp_path / 'flink'}"]
            log = tmp_path / f"{host}.log"
            running[host] = started(log, "flows.flink", *command, *place, **clusters.HASTY)
        yield running
    finally:
        for process in running.values():
            servers.stop(process)


def _size(master: str) -> tuple[int, int]:
    try:
        return FlinkCluster(master).size()
    except (UnavailableError, RuntimeError):
        return 0, 0


# Slow: a cluster of three Java processes starts and ends.
def test_processes_make_a_cluster_run_a_job_and_end_at_once(
    master: str, processes, scenes: Path, dataset: Path, tmp_path: Path, job: Job
) -> None:
    """Over 20 s: three JVMs start, which is what the test is about, and run a job."""
    until(lambda: _size(master) == (2, 2), "two TaskManagers of one slot")
    # A job takes all slots, whatever machine the JobManager runs on.
    assert FlinkCluster(master).default_parallelism() is None
    for host, process in processes.items():
        # The address that the compose file's health checks request.
        health = "overview" if host == LEADER else f"taskmanagers/{host}"
        with urllib.request.urlopen(f"http://{master}/{health}") as answer:
            assert answer.status == 200
            # Pages from other servers may not read the response.
            assert answer.headers["Access-Control-Allow-Origin"] == f"http://{master}"
        connections = psutil.Process(process.pid).net_connections("tcp")
        listening = {one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN}
        assert {address.removeprefix("::ffff:") for address in listening} == {host}

    done = job(
        "beam.ingest",
        f"--source={scenes}",
        f"--output={tmp_path}/out",
        *to_arguments(SMALL),
        *("--runner=FlinkRunner", f"--flink_master={master}"),
    )
    assert done.returncode == 0, done.stderr
    assert published_digests(tmp_path / "out") == published_digests(dataset.parents[1])

    for host in (*TASK_MANAGERS, LEADER):
        os.kill(processes[host].pid, signal.SIGTERM)
        assert processes[host].wait() == 128 + signal.SIGTERM
    for folder in (tmp_path / "flink").iterdir():
        until(lambda folder=folder: not clusters.at_home(folder), "the end of all processes")


@pytest.fixture
def no_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces Java by a program that prints its process id, TMPDIR and arguments, and waits."""
    java = tmp_path / "home/bin/java"
    java.parent.mkdir(parents=True)
    java.write_text('#!/bin/sh\necho "$$" "$TMPDIR" "$@"\nexec sleep 3600\n', encoding="utf-8")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LYFT_TOOLS", str(tmp_path / "tools"))
    (tmp_path / f"tools/flink-{tools.FLINK}").mkdir(parents=True)
    (tmp_path / "tools/beam-flink-runner.jar").touch()


@pytest.mark.usefixtures("no_java")
def test_task_manager_locks_its_folder_and_has_memory_for_its_slots(
    tmp_path: Path, job: Job
) -> None:
    folder, log = tmp_path / "root/taskmanager-node", tmp_path / "log"
    left = folder / "tmp/left"
    left.parent.mkdir(parents=True)
    left.touch()
    command = ["flows.flink", "taskmanager", "--host=node", "--jobmanager=leader"]
    command += ["--slots=16", f"--root={tmp_path / 'root'}"]
    process = started(log, *command)
    try:
        until(lambda: log.read_text().endswith("\n"), "the process's start")
        pid, scratch, *arguments = log.read_text().split()
        assert (pid, scratch) == (str(process.pid), str(folder / "tmp"))
        assert not left.exists()
        assert "-Dtaskmanager.resource-id=node" in arguments

        config = yaml.safe_load((folder / "conf/config.yaml").read_text(encoding="utf-8"))
        leader = [config[f"jobmanager.rpc.{part}"] for part in ("address", "port")]
        assert leader == ["leader", 6123]
        memory = {
            key.removeprefix("taskmanager.memory."): int(value.removesuffix("m"))
            for key, value in config.items()
            if key.startswith("taskmanager.memory.")
        }
        heap = memory["framework.heap.size"] + memory["task.heap.size"]
        direct = memory["framework.off-heap.size"] + memory["task.off-heap.size"]
        assert f"-Xmx{heap}m" in arguments
        assert f"-XX:MaxDirectMemorySize={direct + memory['network.max']}m" in arguments
        # Enough buffers for 30 outputs in each slot.
        buffers = config["taskmanager.network.sort-shuffle.min-buffers"]
        assert memory["network.min"] * 1024 // 32 >= 16 * 30 * buffers

        second = job(*command)
        assert second.returncode == 2
        assert second.stderr.startswith(f"error: {folder}: another process is using this folder")
        assert process.poll() is None
    finally:
        servers.stop(process)
    process = started(log, *command)
    until(lambda: log.read_text().count("\n") == 2, "another start")
    servers.stop(process)


@pytest.mark.usefixtures("no_java")
@pytest.mark.parametrize("leader", [":6123", "leader:rpc"])
def test_malformed_address_is_a_one_line_error(leader: str, tmp_path: Path, job: Job) -> None:
    options = ["--host=node", f"--root={tmp_path / 'root'}", f"--jobmanager={leader}"]
    done = job("flows.flink", "taskmanager", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: --jobmanager={leader}: expected <host> or <host>:<port>\n"
    assert not (tmp_path / "root").exists()
