"""The job is killed before each of its changes: readers see whole tables, the next run mends."""

import os
import signal
from pathlib import Path

import pytest
from forks import Forks
from inference import tables_of
from jobs import IN_MEMORY, TWO_WORKERS, started
from kills import points
from servers import until

from beam.infer.runs import TABLES

ARGUMENTS = ["--height=32", "--width=48"]
SMALL_PARTS, ONE_PART = "--part_mib=0.004", "--part_mib=1"


def _arguments(model: Path, source: Path, output: Path, *options: str) -> list[str]:
    places = (f"--model={model}", f"--source={source}", f"--output={output}")
    return [*places, *ARGUMENTS, *IN_MEMORY, *options]


def _by_table(files: dict[str, str]) -> dict[str, dict[str, str]]:
    return {
        table: {name: data for name, data in files.items() if name.startswith(f"{table}/")}
        for table in TABLES
        if table != "runs"
    }


# Some 20 jobs of about a second each.
@pytest.mark.parametrize("first", [True, False])
def test_a_kill_before_any_change_leaves_each_table_old_or_new(
    first: bool, forks: Forks, plain_model: Path, scenes: Path, tmp_path: Path
) -> None:
    """Each job meets what the killed one before it has left, and is killed one change later.

    The tables that are replaced, if not the first, hold the same rows in a single part.
    """
    output, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    arguments = _arguments(plain_model, scenes, output, SMALL_PARTS, "--no-resume")
    before: dict[str, str] = {}
    for folder in (undisturbed, output):
        earlier = _arguments(plain_model, scenes, folder, ONE_PART)
        if not first:
            assert forks.job("beam.infer", *earlier).returncode == 0
            before = tables_of(folder)
    same = _arguments(plain_model, scenes, undisturbed, SMALL_PARTS, "--no-resume")
    changes = forks.changes(undisturbed, "beam.infer", *same)
    expected = tables_of(undisturbed)
    assert len(expected) > 10
    pending = "os.rename /.staging-*/tables -> /.publish-*"
    assert pending in changes
    swaps = [one for one in changes if one.startswith("os.rename /.publish-*/*")]
    assert len(swaps) == len(TABLES)
    for point in points(changes):
        if first and "/.publish-*" not in point[0]:
            continue
        code = forks.killed(point, output, "beam.infer", *arguments)
        # A change that was made by the job before does not come again.
        assert code in (-9, 0), point
        found = _by_table(tables_of(output))
        for table in found:
            assert found[table] in (_by_table(before)[table], _by_table(expected)[table]), point
        if changes.index(point[0]) <= changes.index(pending):
            assert (code, found) == (-9, _by_table(before)), point
    assert forks.job("beam.infer", *arguments).returncode == 0
    assert tables_of(output) == expected
    assert {path.name for path in output.iterdir()} == set(TABLES)


def test_a_kill_of_a_job_with_workers_of_its_own(
    forks: Forks, plain_model: Path, scenes: Path, tmp_path: Path
) -> None:
    output, fresh = tmp_path / "out", tmp_path / "fresh"
    places = (f"--model={plain_model}", f"--source={scenes}", f"--output={output}")
    options = (*ARGUMENTS, SMALL_PARTS, *TWO_WORKERS)
    process = started(tmp_path / "log", "beam.infer", *places, *options)
    until(lambda: any(output.glob(".staging-*/tables/masks/*")), "a first part")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    killed = tables_of(output)
    for folder in (output, fresh):
        again = _arguments(plain_model, scenes, folder, SMALL_PARTS)
        assert forks.job("beam.infer", *again).returncode == 0
    expected = tables_of(fresh)
    # It may have published before the signal came.
    assert killed in ({}, expected)
    assert tables_of(output) == expected
    assert {path.name for path in output.iterdir()} == set(TABLES)
