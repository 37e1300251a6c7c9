"""Both jobs on a real Flink cluster: the same bytes as with the local runner, despite failures."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import clusters
import pytest
from jobs import REAL, Job, started
from servers import until

from beam import tools
from flows import flink
from flows.flink_demo import published_bytes
from flows.scenes import write_scenes
from flows.state import start_time

INGEST = ["--name=lyft", "--block_length=1"]
INFER = ["--height=96", "--width=128", "--part_mib=0.1"]


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
    """The real pairs; if they are missing, synthetic scenes of the same size."""
    if REAL.is_dir():
        return REAL
    folder = tmp_path_factory.mktemp("pairs")
    write_scenes(str(folder), 160)
    return folder


@pytest.mark.usefixtures("real")
def test_the_pairs_are_real() -> None:
    """Skipped, so that the summary says it, where the other tests use synthetic scenes."""


@pytest.fixture(scope="module")
def local(pairs: Path, plain_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the output that the local runner publishes."""
    folder = tmp_path_factory.mktemp("local")
    jobs = (_ingest(pairs, folder / "ingest"), _infer(plain_model, pairs, folder / "infer"))
    for number, command in enumerate(jobs):
        log = folder / f"{number}.log"
        assert started(log, *command).wait() == 0, log.read_text()
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
    published = published_bytes(tmp_path / "out")
    assert published == published_bytes(local / "ingest")
    assert len(published) > 8
    assert done.stdout.strip() == str(next((tmp_path / "out/lyft").iterdir()))
    # The progress lines come from workers that Flink started.
    assert "pairs done (100%)" in done.stderr
    assert clusters.running_jobs(cluster) == []


def test_infer_publishes_the_same_bytes(
    cluster: Path, pairs: Path, plain_model: Path, local: Path, tmp_path: Path, job: Job
) -> None:
    command = [*_infer(plain_model, pairs, tmp_path / "out"), *_on(cluster)]
    done = job(*command)
    assert done.returncode == 0, done.stderr
    published = published_bytes(tmp_path / "out")
    assert published == published_bytes(local / "infer")
    assert len(published) > 8
    # Run again, the same command finds its run published and submits no job to Flink.
    flink_job = clusters.last_job(cluster)
    assert "nothing has changed" in job(*command).stderr
    assert clusters.last_job(cluster) == flink_job


def _counted(output: Path, counter: str) -> bool:
    """Whether a worker has reported this counter."""
    found = output.glob("**/progress/*.json")
    return any(f'"{counter}"' in path.read_text(encoding="utf-8") for path in found)


def _at_work(
    cluster: Path, output: Path, log: Path, counter: str, command: list[str]
) -> tuple[subprocess.Popen[bytes], set[int]]:
    """A job in progress, and the ids of the first TaskManager's workers, which are stopped.

    A job that ends before they are stopped is started again.
    """
    for _ in range(5):
        clusters.up(cluster)
        process = started(log, *command, *_on(cluster))
        until(
            lambda ended=process.poll: _counted(output, counter) or ended() is not None,
            f"a first {counter}",
        )
        workers = clusters.children(clusters.pid_of(cluster, "taskmanager-1"))
        _signal(workers, signal.SIGSTOP)
        if workers and clusters.running_jobs(cluster):
            return process, workers
        _signal(workers, signal.SIGCONT)
        assert process.wait() == 0, log.read_text()
        shutil.rmtree(output)
    raise AssertionError("no job was seen at work")


def _signal(processes: set[int], number: int) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@pytest.mark.parametrize(("name", "counter"), [("ingest", "written"), ("infer", "predicted")])
def test_a_killed_task_manager_costs_nothing(
    name: str,
    counter: str,
    cluster: Path,
    pairs: Path,
    plain_model: Path,
    local: Path,
    tmp_path: Path,
) -> None:
    output = tmp_path / "out"
    command = _ingest(pairs, output) if name == "ingest" else _infer(plain_model, pairs, output)
    process, workers = _at_work(cluster, output, tmp_path / "log", counter, command)
    os.kill(clusters.pid_of(cluster, "taskmanager-1"), signal.SIGKILL)
    _signal(workers, signal.SIGCONT)
    # No worker is left that could write for the lost attempt.
    until(lambda: not any(map(start_time, workers)), "the workers' end")
    assert process.wait() == 0, (tmp_path / "log").read_text()
    assert "taskmanager-1" in clusters.failures(cluster)
    assert published_bytes(output) == published_bytes(local / name)
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_killed_worker_costs_nothing(
    cluster: Path, pairs: Path, local: Path, tmp_path: Path
) -> None:
    """The kernel kills a worker like this if memory runs out; its TaskManager goes on."""
    output = tmp_path / "out"
    command = _ingest(pairs, output)
    process, workers = _at_work(cluster, output, tmp_path / "log", "written", command)
    _signal(workers, signal.SIGKILL)
    assert process.wait() == 0, (tmp_path / "log").read_text()
    assert clusters.failures(cluster)
    assert published_bytes(output) == published_bytes(local / "ingest")


def test_a_users_mistake_in_a_worker_is_one_line(
    cluster: Path, scenes: Path, plain_model: Path, tmp_path: Path, job: Job
) -> None:
    clusters.up(cluster)
    done = job(
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
    clusters.up(cluster)
    process = started(tmp_path / "log", *_ingest(pairs, tmp_path / "out"), *_on(cluster))
    until(lambda: clusters.running_jobs(cluster) or process.poll() is not None, "a running job")
    assert process.poll() is None, (tmp_path / "log").read_text()
    job = clusters.last_job(cluster)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait() == 130
    assert (tmp_path / "log").read_text().splitlines()[-1].startswith("error: interrupted")
    until(lambda: clusters.api(cluster).state(job) == "CANCELED", "the job's end")
    assert clusters.api(cluster)._ask("GET", "jars")["files"] == []
    assert [path.name for path in (tmp_path / "out/lyft").iterdir()] == []


def test_mistakes_about_the_cluster_are_one_line(
    cluster: Path, scenes: Path, tmp_path: Path, job: Job
) -> None:
    clusters.up(cluster)
    for arguments, code, complaint in (
        (["--runner=FlinkRunner"], 2, "expected --flink_master=<host>:<port>"),
        (["--runner=FlinkRunner", "--flink_master=127.0.0.1:9"], 75, "does not answer"),
        ([*_on(cluster), "--parallelism=99"], 2, "slots"),
        ([*_on(cluster), "--object_reus=true"], 2, "unknown option --object_reus"),
    ):
        done = job("beam.ingest", f"--source={scenes}", f"--output={tmp_path}/out", *arguments)
        assert done.returncode == code, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert complaint in done.stderr
