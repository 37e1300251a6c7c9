"""This machine's processor: its cores, and whether it is fast at bfloat16; imports no framework."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def available_cores(root: Path = Path("/")) -> int:
    """Number of cores that this process may use.

    A container's share of the processor, such as Docker's ``--cpus`` and a limit of Kubernetes, is
    rounded up.

    Args:
        root: folder of the machine's ``proc`` and ``sys``.
    """
    return min([len(os.sched_getaffinity(0)), *map(math.ceil, _quotas(root))])


def _quotas(root: Path) -> Iterator[float]:
    """The quotas of this process's control groups and of those around them, in cores.

    Sources: the kernel's documentation, "Control Group v2" (``cpu.max``) and "CFS Bandwidth
    Control" (``cpu.cfs_quota_us``).
    """
    mounted = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = mounted / "cpu" if controllers else mounted
        # A container may be told a path outside of what it sees; the top is then its own group.
        group = top / path.lstrip("/")
        for folder in (group, *group.parents[: len(group.parts) - len(top.parts)]):
            quota, _, period = _read(folder / "cpu.max").partition(" ")
            if controllers:
                quota, period = (
                    _read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")
                )
            with suppress(ValueError):
                # No quota is "max", or -1.
                if int(quota) > 0:
                    yield int(quota) / int(period)


def has_fast_bfloat16(cpuinfo: str | None = None) -> bool:
    """True if bfloat16 is faster than float32: with AMX, or with ``avx512_bf16`` on AMD.

    Intel processors without AMX, or with AMX hidden from a virtual machine, may have
    ``avx512_bf16`` too, but on an Emerald Rapids it runs at half the speed of float32 in both
    OpenVINO and TensorFlow.

    Args:
        cpuinfo: text of ``/proc/cpuinfo``; by default, that of this machine.
    """
    text = _read(Path("/proc/cpuinfo")) if cpuinfo is None else cpuinfo
    fields = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    first_core = {name.strip(): value.strip() for name, _, value in fields}
    flags = first_core.get("flags", "").split()
    amd = first_core.get("vendor_id") == "AuthenticAMD"
    return "amx_bf16" in flags or ("avx512_bf16" in flags and amd)


def _read(path: Path) -> str:
    """A file's text, empty if it cannot be read."""
    with suppress(OSError):
        return path.read_text(encoding="utf-8").strip()
    return ""
