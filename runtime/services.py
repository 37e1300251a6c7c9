"""Processes that outlive the command that starts them, and their ports, saved in a state folder.

The servers and workers of `make up` are such processes, and a Flink cluster's.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from runtime.atomic_files import replacing
from runtime.errors import UserError

ROOT = "outputs/local"
"""Default state folder of `make up`."""

_POLL_S = 0.1
_GROUP, _STARTED = 1, 18
"""Indices into the fields that ``_stat`` returns."""


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()


class Service(BaseModel):
    """A process that leads its own group.

    Attributes:
        started: its start time from the kernel, which no later process with the same id shares.
        boot: the kernel's id of the current boot of the machine.
    """

    pid: int
    started: str
    boot: str = Field(default_factory=_boot)

    def is_running(self) -> bool:
        """Whether this very process is running, not a later one with the same id."""
        return self.boot == _boot() and start_time(self.pid) == self.started

    def has_processes(self) -> bool:
        """Whether it is running, or has ended but left processes of its group behind."""
        # No other process gets a group's id as long as the group has members.
        is_ours = self.boot == _boot() and start_time(self.pid) in (self.started, None)
        return is_ours and bool(group_members(self.pid))

    def stop(self, grace_s: float) -> None:
        """Ends what is left of the process and its group, first with SIGTERM, then SIGKILL."""
        if self.has_processes():
            stop_process_group(self.pid, grace_s)


class State(BaseModel):
    """State that is kept when services stop: their ports stay the same, and so does ``raw``.

    Attributes:
        raw: folder or URI of the raw pairs that the deployments read if a run names none, as at
            night; empty for the one in prefect.yaml.
        inode: of the folder. A folder that is moved keeps it; a copy has another one, and the
            services are not those of the copy.
    """

    ports: dict[str, int] = {}
    services: dict[str, Service] = {}
    raw: str = ""
    inode: int = 0

    @classmethod
    def load(cls, root: Path) -> State:
        """The state of a folder; an empty one if its file is missing or invalid."""
        try:
            state = cls.model_validate_json((root / "state.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValidationError):
            return cls()
        if state.inode and state.inode != root.stat().st_ino:
            state.services.clear()
        return state

    def save(self, root: Path) -> None:
        """Replaces the file atomically."""
        self.inode = root.stat().st_ino
        with replacing(root / "state.json") as new:
            new.write_text(json.dumps(self.model_dump(), indent=2) + "\n", encoding="utf-8")

    def is_running(self, name: str) -> bool:
        """Whether the service with this name was started and is still running."""
        return name in self.services and self.services[name].is_running()

    def start(
        self,
        root: Path,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        cwd: Path,
        env: Mapping[str, str],
    ) -> bool:
        """Starts a service and saves its process id at once; returns False if it runs already."""
        if self.is_running(name):
            return False
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=env,
                start_new_session=True,
            )
        self.services[name] = Service(pid=process.pid, started=start_time(process.pid) or "")
        self.save(root)
        return True

    def url(self, name: str) -> str:
        """Address of a server, which listens on this machine only."""
        return f"http://127.0.0.1:{self.ports[name]}"


def prefect_api_url(root: Path) -> str | None:
    """API address of the Prefect server that `make up` started here; None if it is not running."""
    state = State.load(root)
    return f"{state.url('prefect')}/api" if state.is_running("prefect") else None


def free_port(preferred: int = 0) -> int:
    """The preferred port of 127.0.0.1 if it is free, else any that is.

    Raises:
        UserError: none is free.
    """
    for port in (preferred, 0):
        with socket.socket() as probe:
            # As servers do, so that a port whose last connections are still closing counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise UserError("no port is free on 127.0.0.1; stop a program that listens on many")


def stop_process_group(group: int, grace_s: float) -> None:
    """Sends SIGTERM to a process group, and SIGKILL to what is left after ``grace_s`` seconds."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(group, sign)
        deadline = time.monotonic() + grace_s
        while group_members(group) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if not group_members(group):
            return


def group_members(group: int) -> list[int]:
    """Ids of the running processes of a process group."""
    pids = (int(folder.name) for folder in Path("/proc").glob("[0-9]*"))
    return [pid for pid in pids if (fields := _stat(pid)) and int(fields[_GROUP]) == group]


def start_time(pid: int) -> str | None:
    """When a process started, in clock ticks since the machine booted; None if it has ended."""
    fields = _stat(pid)
    return fields[_STARTED] if fields else None


def _stat(pid: int) -> list[str] | None:
    """The kernel's fields for a process, from its parent's id on; None if it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    # The second field, the program's name in brackets, may contain spaces.
    status, *fields = stat.rpartition(") ")[2].split()
    return None if status == "Z" else fields
