"""A Flink cluster for tests, and lookups of its jobs and processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from jobs import python
from servers import not_fetched

from beam.runners.flink_api import FlinkCluster
from flows.flink import cluster as flink
from runtime.errors import UserError
from runtime.services import State


def need(*fetched: Callable[[], object]) -> None:
    """Skips the test if Java or a package cannot be fetched; each is fetched only once.

    A package whose hash is not the expected one fails the test.
    """
    try:
        for fetch in fetched:
            fetch()
    except UserError as error:
        not_fetched(str(error), str(error))


HASTY = {"JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"}
"""Variables for a JVM that ends before its code could be optimised: half the processor time."""


def up(root: Path) -> None:
    """Starts a cluster, or its missing processes, through the command line."""
    done = python("-m", "flows.flink", "up", f"--root={root}", env={**os.environ, **HASTY})
    assert done.returncode == 0, done.stderr


def master(root: Path) -> str:
    return flink.master(root)


def api(root: Path) -> FlinkCluster:
    return FlinkCluster(master(root))


def running_jobs(root: Path) -> list[str]:
    found = api(root)._ask("GET", "jobs")["jobs"]
    return [one["id"] for one in found if one["status"] in ("RUNNING", "CREATED", "RESTARTING")]


def last_job(root: Path) -> str:
    found = api(root)._ask("GET", "jobs/overview")["jobs"]
    return str(max(found, key=lambda one: one["start-time"])["jid"])


def failures(root: Path) -> str:
    """Stack traces of all failures of the last job."""
    found = api(root)._ask("GET", f"jobs/{last_job(root)}/exceptions")
    return "\n".join(entry["stacktrace"] for entry in found["exceptionHistory"]["entries"])


def pid_of(root: Path, service: str) -> int:
    return State.load(root).services[service].pid


def children(pid: int) -> set[int]:
    """Ids of a process's children."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _parent(int(entry.name)) == pid:
            found.add(int(entry.name))
    return found


def at_home(root: Path) -> set[int]:
    """Ids of the processes whose working folder is the cluster's: its own and their children."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.readlink(entry / "cwd") == str(root):
                found.add(int(entry.name))
        except OSError:
            continue
    return found


def _parent(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(") ")[2].split()[1])
