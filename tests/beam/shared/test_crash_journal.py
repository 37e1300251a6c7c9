"""Files that crash a decoder are rejects; files that are too large are not read."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import poison
import pyarrow.parquet as pq
import pytest
from inference import query, run_infer
from ingesting import run_ingest
from jobs import ROOT, SMALL, SMALL_ARGUMENTS, TWO_WORKERS, on_small_disk, python

from beam.infer import pictures
from beam.ingest import records
from beam.shared import crash_journal
from beam.shared.crash_journal import CrashJournal, ReadSettings, run_without_crashing_files
from runtime.errors import UserError
from schemas.classes import load_taxonomy
from schemas.config import InferConfig, IngestConfig
from schemas.layout import REJECTS
from schemas.manifest import load_manifest

NAMES = ("CameraRGB/000_0007.png", "CameraSeg/000_0023.png")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a job in real processes, whose decoders crash on poisoned files, or ``once`` alone."""

    def started(*arguments: str, once: str = "") -> subprocess.CompletedProcess[str]:
        site = poison.site(tmp_path, once)
        path = f"{site}{os.pathsep}{ROOT}"
        return python("-m", *arguments, *TWO_WORKERS, env={**os.environ, "PYTHONPATH": path})

    return started


@pytest.fixture
def poisoned(copy: Path) -> Path:
    """The scenes with an image and a mask, of two pairs, on which decoders crash."""
    poison.add_to(copy, *NAMES)
    return copy


FULL = """
import sys
from contextlib import suppress
from beam.shared.crash_journal import CrashJournal, ReadSettings
from schemas.classes import load_taxonomy
from schemas.config import IngestConfig
with suppress(OSError), open(f"{sys.argv[1]}/filler", "wb", buffering=0) as file:
    while True:
        file.write(bytes(4096))
settings = ReadSettings("raw", IngestConfig(), load_taxonomy("carla-0.8"))
with CrashJournal(sys.argv[1], settings).recording([("1.png", None)]) as crashing:
    print(sorted(crashing))
"""


def test_a_full_disk_ends_no_worker(tmp_path: Path) -> None:
    """To write to a mapped file that has no room on the disk would end the process by SIGBUS."""
    folder = tmp_path / "small"
    command = [*on_small_disk(folder), sys.executable, "-c", FULL, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


CRASH = "a worker has crashed on {}, and so has a second process: left out"


@pytest.mark.slow
def test_ingest_leaves_out_what_crashes_a_decoder(run: Run, poisoned: Path, tmp_path: Path) -> None:
    command = ("beam.ingest", f"--source={poisoned}", f"--output={tmp_path}/out", *SMALL_ARGUMENTS)
    done = run(*command, "--max_reject_fraction=0.1")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert all(CRASH.format(name) in done.stderr for name in NAMES)
    folder = Path(done.stdout.splitlines()[-1])
    rejects = pq.read_table(folder / REJECTS).to_pylist()
    assert [(one["source_uri"], one["code"]) for one in rejects] == [
        (f"{poisoned}/{name}", "crashed") for name in NAMES
    ]
    assert load_manifest(folder).records == 38
    # It is known by now, and nothing crashes.
    (poisoned / "CameraRGB/000_0000.png").touch()
    again = run(*command, "--max_reject_fraction=0.1")
    assert again.returncode == 0, again.stderr
    assert "crashed on" not in again.stderr
    assert Path(again.stdout.splitlines()[-1]) == folder


@pytest.mark.slow
def test_infer_predicts_all_others(
    run: Run, poisoned: Path, plain_model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command = ("beam.infer", f"--model={plain_model}", f"--source={poisoned}")
    command += (f"--output={output}", "--height=32", "--width=48")
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert query(output, "FROM rejects SELECT image_id, stage, code ORDER BY 1") == [
        ("000_0007", "read", "crashed"),
        ("000_0023", "truth", "crashed"),
    ]
    assert query(output, "FROM masks SELECT count(*), count(confusion)") == [(39, 38)]
    (poisoned / "CameraRGB/000_0000.png").touch()
    again = run(*command)
    assert again.returncode == 0, again.stderr
    assert "crashed on" not in again.stderr
    assert query(output, "FROM runs SELECT images_predicted, images_reused") == [(39, 39)]


@pytest.mark.slow
def test_a_worker_that_was_killed_is_no_files_fault(
    run: Run, poisoned: Path, tmp_path: Path
) -> None:
    command = ("beam.ingest", f"--source={poisoned}", f"--output={tmp_path}/out", *SMALL_ARGUMENTS)
    done = run(*command, once=str(tmp_path / "once"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: a worker process has ended while it worked, and no file is at")
    assert list((tmp_path / "out").rglob("*.tfrecord*")) == []


def test_more_crashes_than_make_sense_end_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[int] = []
    settings = ReadSettings("raw", IngestConfig(), load_taxonomy("carla-0.8"))

    def attempt(crashed: frozenset[str]) -> None:
        attempts.append(len(crashed))
        with CrashJournal(str(tmp_path), settings).recording([(f"{len(crashed)}.png", None)]):
            # As a killed process would, the note stays.
            for note in tmp_path.glob("*.journal"):
                (tmp_path / f"{note.name}.journal").write_bytes(note.read_bytes())
        raise RuntimeError

    monkeypatch.setattr(
        crash_journal, "_find_crashing", lambda pairs, _: frozenset(one for one, _ in pairs)
    )
    with pytest.raises(UserError, match="crash on more than 20 files of 'raw'"):
        run_without_crashing_files(attempt, lambda: None, tmp_path, settings)
    assert attempts == list(range(21))


@pytest.mark.slow
def test_the_next_worker_finds_out_what_ended_the_last(
    poisoned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Flink, where a job outlives its workers."""
    settings = ReadSettings(str(poisoned), IngestConfig(), load_taxonomy("carla-0.8"))
    pairs: list[crash_journal.PairPaths] = [
        (f"CameraRGB/000_{number:04}.png", f"CameraSeg/000_{number:04}.png")
        for number in (0, 7, 23)
    ]
    monkeypatch.setenv("PYTHONPATH", f"{poison.site(tmp_path)}{os.pathsep}{ROOT}")
    with CrashJournal(str(tmp_path), settings).recording(pairs) as crashing:
        assert not crashing
        # That worker is still at it, or has ended here.
        following = CrashJournal(str(tmp_path), settings)
    with following.recording(pairs) as crashing:
        assert crashing == {pairs[1][0], pairs[2][1]}
    with CrashJournal(str(tmp_path), settings).recording(pairs) as crashing:
        assert not crashing


def test_a_file_that_is_too_large_is_not_read(
    copy: Path, trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sparse files of 3 MiB, where at most 1 is allowed; petabytes are no different."""
    large = {f"{copy}/CameraRGB/000_0007.png", f"{copy}/CameraSeg/000_0023.png"}
    for name in large:
        os.truncate(name, 3 << 20)
    for module in (records, pictures):
        read = module.read_bytes

        def guarded(place: str, read: Callable[[str], bytes] = read) -> bytes:
            assert place not in large
            return read(place)

        monkeypatch.setattr(module, "read_bytes", guarded)
    config = SMALL.model_copy(update={"max_file_mib": 1, "max_reject_fraction": 0.1})
    rejects = pq.read_table(run_ingest(copy, tmp_path, config) / REJECTS).to_pylist()
    assert {one["source_uri"] for one in rejects} == large
    reasons = {(one["code"], one["message"]) for one in rejects}
    assert reasons == {("too_large", "expected at most 1 MiB, found 3 MiB")}
    output = run_infer(trained, tmp_path / "out", InferConfig(max_file_mib=1), source=copy)
    assert query(output, "FROM rejects SELECT image_id, stage, code ORDER BY 1") == [
        ("000_0007", "read", "too_large"),
        ("000_0023", "truth", "too_large"),
    ]
    assert query(output, "FROM masks SELECT count(*), count(confusion)") == [(39, 38)]
