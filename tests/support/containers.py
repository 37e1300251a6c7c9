"""Parses the Dockerfile, the locks and the compose file for the tests."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jobs import ROOT
from packaging.requirements import Requirement

DOCKERFILE = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker/compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: one for name, one in SERVICES.items() if "build" in one}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKS = {path.stem: path for path in (ROOT / "docker/locks").glob("*.lock")}
IMAGES = ("cpu", "gpu", "flink", "worker", "servers")
LINUX = {
    "python_full_version": "3.12.14",
    "python_version": "3.12",
    "platform_machine": "x86_64",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "os_name": "posix",
    "platform_python_implementation": "CPython",
    "implementation_name": "cpython",
}


def instructions() -> Iterator[tuple[str, str, str]]:
    """Stage, instruction and arguments of each line of the Dockerfile, continued lines as one."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    stage = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            stage = rest.partition(" AS ")[2]
        yield stage, word, " ".join(rest.split())


STAGES = {
    rest.partition(" AS ")[2]: rest.partition(" AS ")[0]
    for _, word, rest in instructions()
    if word == "FROM"
}
ARGS = dict(
    rest.split("=", 1) for stage, word, rest in instructions() if word == "ARG" and not stage
)


def lineage(stage: str) -> list[str]:
    """A stage and the stages it is based on, without those it only copies from."""
    return [stage, *lineage(STAGES[stage])] if stage in STAGES else []


def of_image(image: str, word: str) -> list[str]:
    """Arguments of all instructions that an image inherits, the base's first."""
    found = list(instructions())
    return [
        rest
        for stage in reversed(lineage(image))
        for where, name, rest in found
        if where == stage and name == word
    ]


@cache
def locked(lock: Path) -> dict[str, list[tuple[Requirement, int]]]:
    """Requirements of a lock by name, with the number of hashes of each."""
    text = lock.read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, list[tuple[Requirement, int]]] = {}
    for line in text.splitlines():
        if line and not line.lstrip().startswith("#"):
            requirement = Requirement(line.partition("--hash")[0].strip())
            found.setdefault(requirement.name.lower(), []).append(
                (requirement, line.count("--hash"))
            )
    return found


def version(lock: Path, name: str) -> str | None:
    """The version that a lock installs on Linux with Python 3.12."""
    for requirement, _ in locked(lock).get(name.lower().replace("_", "-"), []):
        if requirement.marker is None or requirement.marker.evaluate(LINUX):
            return str(requirement.specifier).removeprefix("==")
    return None


def environment(service: str) -> dict[str, str]:
    return {key: str(value) for key, value in (SERVICES[service].get("environment") or {}).items()}


def program(service: str) -> list[str]:
    command = SERVICES[service].get("command", [])
    return command.split() if isinstance(command, str) else command
