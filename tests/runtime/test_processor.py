"""Which processors are fast at bfloat16, and the cores that a process may use."""

import os
from pathlib import Path

import pytest

from runtime.processor import available_cores, has_fast_bfloat16


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("", {}, 8),
        # In a container, version 2 and version 1.
        ("0::/\n", {"cpu.max": "150000 100000"}, 2),
        ("0::/\n", {"cpu.max": "max 100000"}, 8),
        (
            "3:cpu,cpuacct:/docker/0123\n0::/\n",
            {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"},
            3,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        # A service: the groups around its own limit it, too.
        (
            "0::/a.slice/b.service\n",
            {"a.slice/cpu.max": "50000 100000", "a.slice/b.service/cpu.max": "400000 100000"},
            1,
        ),
        # More than there are.
        ("0::/\n", {"cpu.max": "6400000 100000"}, 8),
    ],
)
def test_the_cores_are_those_of_the_quota(
    monkeypatch, tmp_path: Path, groups: str, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    given = {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}
    for name, text in given.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert available_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("vendor", "flags", "fast"),
    [
        ("GenuineIntel", "avx512f avx512_bf16 amx_bf16 amx_tile", True),
        ("GenuineIntel", "avx512f avx512_bf16", False),
        ("AuthenticAMD", "avx512f avx512_bf16", True),
        ("AuthenticAMD", "avx2", False),
    ],
)
def test_where_bfloat16_is_fast(vendor: str, flags: str, fast: bool) -> None:
    text = f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {flags}\n\nprocessor\t: 1\n"
    assert has_fast_bfloat16(text) == fast
