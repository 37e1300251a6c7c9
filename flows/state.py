"""What `make up` started: processes and ports, remembered in one file of the state folder."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from pydantic import BaseModel, ValidationError

_POLL_S = 0.1


class Service(BaseModel):
    """A process that leads its own group.

    Attributes:
        started: the kernel's time of its start, which no later process with this id shares.
    """

    pid: int
    started: str

    def is_running(self) -> bool:
        """Whether the very process that was started still runs."""
        return start_time(self.pid) == self.started

    def stop(self, grace_s: float) -> None:
        """Ends the process and its group, first kindly."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            if not self.is_running():
                return
            os.killpg(self.pid, sign)
            deadline = time.monotonic() + grace_s
            while self.is_running() and time.monotonic() < deadline:
                time.sleep(_POLL_S)


class State(BaseModel):
    """Ports are kept when services stop, so that addresses stay."""

    ports: dict[str, int] = {}
    services: dict[str, Service] = {}

    @classmethod
    def load(cls, root: Path) -> State:
        """The state of a folder; an empty one where there is none."""
        try:
            return cls.model_validate_json((root / "state.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValidationError):
            return cls()

    def save(self, root: Path) -> None:
        """Replaces the file in one step."""
        new = root / "state.json.new"
        new.write_text(json.dumps(self.model_dump(), indent=2) + "\n", encoding="utf-8")
        new.replace(root / "state.json")

    def is_running(self, name: str) -> bool:
        """Whether the service of this name was started and still runs."""
        return name in self.services and self.services[name].is_running()

    def url(self, name: str) -> str:
        """Address of a server, which listens on this machine alone."""
        return f"http://127.0.0.1:{self.ports[name]}"


def running_server(root: Path) -> str | None:
    """API address of the Prefect server that `make up` started here, if it runs."""
    state = State.load(root)
    return f"{state.url('prefect')}/api" if state.is_running("prefect") else None


def start_time(pid: int) -> str | None:
    """When a process started, in clock ticks since the machine did; None where it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field, the program's name in brackets, may hold spaces.
    status, *fields = stat.rpartition(") ")[2].split()
    return None if status == "Z" else fields[18]
