"""Both jobs on a real Flink cluster: the same bytes as with the local runner, despite failures.

Tests over 20 s: the cluster is three JVMs, each job starts Python workers on it, and after a
failure Flink waits 5 s before it tries again.
"""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import clusters
import poison
import pyarrow.parquet as pq
import pytest
from jobs import IN_MEMORY, REAL, ROOT, Job, started
from servers import until

from beam import tools
from beam.infer.__main__ import main as infer_main
from beam.ingest.__main__ import main as ingest_main
from beam.runners.boot import process_environment
from flows.flink import cluster as flink
from flows.flink_demo import published_digests
from flows.scenes import write_scenes
from runtime.services import start_time
from schemas.layout import REJECTS
from schemas.manifest import load_manifest

PAIRS = 24
POISONED = (("RGB", 3), ("Seg", 10))
INGEST = ["--name=lyft", "--block_length=1", "--max_leak=1"]
INFER = ["--height=96", "--width=128", "--part_mib=0.02"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One JobManager and two TaskManagers."""
    clusters.need(tools.java, tools.flink_jars, tools.flink_runner)
    root = tmp_path_factory.mktemp("flink")
    try:
        clusters.up(root)
        yield root
    finally:
        flink.down(root)
    until(lambda: not clusters.at_home(root), "the end of all processes")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the real pairs; if they are missing, synthetic scenes of the same size."""
    folder = tmp_path_factory.mktemp("pairs")
    if not REAL.is_dir():
        write_scenes(str(folder), PAIRS)
        return folder
    for path in sorted(REAL.glob("**/CameraRGB/*.png"))[::8][:PAIRS]:
        for camera in ("CameraRGB", "CameraSeg"):
            (folder / camera).mkdir(exist_ok=True)
            shutil.copy(path.parent.with_name(camera) / path.name, folder / camera)
    return folder


@pytest.mark.usefixtures("real")
def test_the_pairs_are_real() -> None:
    """Skipped, so that the summary says it, where the other tests use synthetic scenes."""


@pytest.fixture(scope="module")
def local(pairs: Path, plain_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the output that the local runner publishes."""
    folder = tmp_path_factory.mktemp("local")
    ingest_main([*_ingest(pairs, folder / "ingest")[1:], *IN_MEMORY])
    infer_main([*_infer(plain_model, pairs, folder / "infer")[1:], *IN_MEMORY])
    return folder


def _ingest(pairs: Path, output: Path) -> list[str]:
    return ["beam.ingest", f"--source={pairs}", f"--output={output}", *INGEST]


def _infer(plain_model: Path, pairs: Path, output: Path) -> list[str]:
    places = (f"--source={pairs}", f"--output={output}")
    return ["beam.infer", f"--model={plain_model}", *places, *INFER]


def _on(cluster: Path) -> list[str]:
    return ["--runner=FlinkRunner", f"--flink_master={clusters.master(cluster)}"]


def test_ingest_publishes_the_same_bytes(
    cluster: Path, pairs: Path, local: Path, tmp_path: Path, job: Job
) -> None:
    done = job(*_ingest(pairs, tmp_path / "out"), *_on(cluster))
    assert done.returncode == 0, done.stderr
    published = published_digests(tmp_path / "out")
    assert published == published_digests(local / "ingest")
    assert len(published) > 8
    assert done.stdout.strip() == str(next((tmp_path / "out/lyft").iterdir()))
    # The progress lines come from workers that Flink started.
    assert "pairs done (100%)" in done.stderr
    assert clusters.running_jobs(cluster) == []


class _Held:
    """A job whose workers stand still in the middle of their work, until they are let go on.

    So it is certain that the job has not ended and that a worker is lost with half of its output.
    """

    def __init__(self, cluster: Path, folder: Path, counter: str, command: list[str]) -> None:
        clusters.up(cluster)
        self._place = folder / "held"
        self._place.mkdir()
        self._cluster = cluster
        self.log = folder / "log"
        program, variables = process_environment()
        variables["PYTHONPATH"] = f"{ROOT}/tests/support/held:{variables['PYTHONPATH']}"
        variables |= {"HELD_AT": counter, "HELD_IN": str(self._place)}
        config = json.dumps({"command": program, "env": variables})
        environment = ["--environment_type=PROCESS", f"--environment_config={config}"]
        self.process = started(self.log, *command, *_on(cluster), *environment)

    def task_manager(self, *others: int) -> tuple[str, set[int]]:
        """Waits for a worker that is held; returns its TaskManager and all workers of that one.

        Args:
            others: ids of workers to ignore.
        """

        def found() -> set[int]:
            assert self.process.poll() is None, self.log.read_text()
            return {int(path.name) for path in self._place.iterdir()} - {*others}

        until(found, "a worker that is held")
        for name in ("taskmanager-1", "taskmanager-2"):
            workers = clusters.children(clusters.pid_of(self._cluster, name))
            if found() & workers:
                return name, workers
        raise AssertionError("no TaskManager has the worker that is held")

    def seen(self) -> set[int]:
        """Ids of all workers that have been held so far."""
        return {int(path.name) for path in self._place.iterdir()}

    def go_on(self) -> None:
        self._place.rename(self._place.with_name("held no more"))

    def has_ended_well(self) -> bool:
        return self.process.wait() == 0 and "Traceback" not in self.log.read_text()


def _kill(cluster: Path, task_manager: str, workers: set[int]) -> None:
    os.kill(clusters.pid_of(cluster, task_manager), signal.SIGKILL)
    # No worker is left that could write for the lost attempt.
    until(lambda: not any(map(start_time, workers)), "the workers' end")


# Slow: Flink notices a lost TaskManager by its heartbeat, and starts the job again.
def test_a_killed_task_manager_costs_infer_nothing(
    cluster: Path, pairs: Path, plain_model: Path, local: Path, tmp_path: Path, job: Job
) -> None:
    command = _infer(plain_model, pairs, tmp_path / "out")
    held = _Held(cluster, tmp_path, "predicted", command)
    name, workers = held.task_manager()
    _kill(cluster, name, workers)
    held.go_on()
    assert held.has_ended_well(), held.log.read_text()
    assert name in clusters.failures(cluster)
    published = published_digests(tmp_path / "out")
    assert published == published_digests(local / "infer")
    assert len(published) > 8
    # Run again, the same command finds its run published and submits no job to Flink.
    flink_job = clusters.last_job(cluster)
    clusters.up(cluster)
    assert "nothing has changed" in job(*command, *_on(cluster)).stderr
    assert clusters.last_job(cluster) == flink_job


# Slow: Flink notices a lost TaskManager by its heartbeat, and starts the job again.
def test_a_killed_worker_and_a_killed_task_manager_cost_ingest_nothing(
    cluster: Path, pairs: Path, local: Path, tmp_path: Path
) -> None:
    """The kernel kills a worker like this if memory runs out; its TaskManager goes on."""
    held = _Held(cluster, tmp_path, "written", _ingest(pairs, tmp_path / "out"))
    _, workers = held.task_manager()
    before = held.seen()
    for pid in workers:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: clusters.failures(cluster), "the failure that Flink notes")

    name, workers = held.task_manager(*before)
    _kill(cluster, name, workers)
    held.go_on()
    assert held.has_ended_well(), held.log.read_text()
    assert name in clusters.failures(cluster)
    assert published_digests(tmp_path / "out") == published_digests(local / "ingest")


def test_a_users_mistake_in_a_worker_is_one_line(
    cluster: Path, scenes: Path, plain_model: Path, tmp_path: Path, job_here: Job
) -> None:
    clusters.up(cluster)
    done = job_here(
        "beam.infer",
        f"--model={plain_model}",
        f"--source={scenes}",
        f"--output={tmp_path}/out",
        "--taxonomy=carla-0.9",
        *_on(cluster),
    )
    errors = [line for line in done.stderr.splitlines() if not line.startswith("infer: ")]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1, done.stderr
    assert "taxonomy carla-0.9" in errors[0]
    assert done.stdout == ""
    assert list((tmp_path / "out").iterdir()) == []
    # The job was not retried.
    assert clusters.running_jobs(cluster) == []


def test_a_stopped_driver_takes_its_job_with_it(cluster: Path, pairs: Path, tmp_path: Path) -> None:
    held = _Held(cluster, tmp_path, "written", _ingest(pairs, tmp_path / "out"))
    held.task_manager()
    job = clusters.last_job(cluster)
    os.killpg(held.process.pid, signal.SIGTERM)
    assert held.process.wait() == 130
    held.go_on()
    assert held.log.read_text().splitlines()[-1].startswith("error: interrupted")
    until(lambda: clusters.api(cluster).state(job) == "CANCELED", "the job's end")
    assert clusters.api(cluster)._ask("GET", "jars")["files"] == []
    assert [path.name for path in (tmp_path / "out/lyft").iterdir()] == []


def test_mistakes_about_the_cluster_are_one_line(
    cluster: Path, scenes: Path, tmp_path: Path, job_here: Job
) -> None:
    clusters.up(cluster)
    for arguments, code, complaint in (
        (["--runner=FlinkRunner"], 2, "expected --flink_master=<host>:<port>"),
        (["--runner=FlinkRunner", "--flink_master=127.0.0.1:9"], 75, "does not answer"),
        ([*_on(cluster), "--parallelism=99"], 2, "slots"),
        ([*_on(cluster), "--object_reus=true"], 2, "unknown option --object_reus"),
    ):
        done = job_here("beam.ingest", f"--source={scenes}", f"--output={tmp_path}/out", *arguments)
        assert done.returncode == code, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert complaint in done.stderr


def test_a_file_that_crashes_a_decoder_is_left_out(
    cluster: Path, pairs: Path, tmp_path: Path, job: Job
) -> None:
    """Flink starts a worker anew, which reads the files of its predecessor in a second process."""
    raw = Path(shutil.copytree(pairs, tmp_path / "raw"))
    image, mask = (sorted((raw / f"Camera{kind}").iterdir())[index] for kind, index in POISONED)
    poison.add_to(raw, *(str(path.relative_to(raw)) for path in (image, mask)))
    program, variables = process_environment()
    variables["PYTHONPATH"] = f"{poison.site(tmp_path)}:{variables['PYTHONPATH']}"
    config = json.dumps({"command": program, "env": variables})
    environment = ["--environment_type=PROCESS", f"--environment_config={config}"]
    arguments = ["--max_reject_fraction=0.2", *_on(cluster), *environment]
    done = job(*_ingest(raw, tmp_path / "out"), *arguments)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1])
    rejects = pq.read_table(folder / REJECTS).to_pylist()
    assert [(one["source_uri"], one["code"]) for one in rejects] == [
        (str(path), "crashed") for path in (image, mask)
    ]
    assert load_manifest(folder).records == PAIRS - 2
