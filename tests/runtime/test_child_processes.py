"""A job, its workers and its helpers end with the process that started them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from jobs import ROOT
from operated import children, job_of, processes
from servers import until

from runtime.child_processes import (
    PARENT_VARIABLE,
    child_environment,
    end_with_parent,
    run_module,
)
from runtime.errors import UserError
from runtime.services import start_time

FLOW = """
import sys, threading
from flows.lifecycle.job_process import JobCallbacks, run_job

module, *arguments = sys.argv[1:]
# As Prefect's pool of threads does.
thread = threading.Thread(target=run_job, args=(module, arguments, JobCallbacks(print)))
thread.start()
thread.join()
"""

JOB = """
import subprocess, sys, time
from pathlib import Path
from runtime.command_line import run_main
from runtime.child_processes import child_environment

def main(arguments):
    *rest, file = arguments
    Path(file).touch()
    if rest:
        subprocess.run([sys.executable, "-m", "endless", *rest], env=child_environment())
    time.sleep(3600)
    return ""

sys.exit(run_main(main))
"""


@contextmanager
def _flow(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    with subprocess.Popen(
        [sys.executable, "-c", FLOW, *arguments], cwd=ROOT, env=environment
    ) as flow:
        try:
            yield flow
        finally:
            flow.kill()


def _jobs(flow: subprocess.Popen[bytes], module: str, argument: str) -> list[int]:
    return [pid for pid in processes(module, argument) if pid != flow.pid]


def test_a_job_and_the_job_that_it_started_end_with_the_flow(tmp_path) -> None:
    (tmp_path / "endless.py").write_text(JOB)
    inner, outer = str(tmp_path / "inner"), str(tmp_path / "outer")
    with _flow(tmp_path, "endless", inner, outer) as flow:
        until(lambda: Path(inner).exists())
        jobs = _jobs(flow, "endless", inner)
        assert len(jobs) == 2
        time.sleep(0.5)
        assert all(map(start_time, jobs))
        flow.send_signal(signal.SIGKILL)
        until(lambda: not any(map(start_time, jobs)))


def test_beams_workers_end_with_the_flow(scenes, tmp_path) -> None:
    options = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    output = f"--output={tmp_path}"
    with _flow(tmp_path, "beam.ingest", f"--source={scenes}", output, *options) as flow:
        job = job_of("beam.ingest", output, flow.pid)
        until(lambda: _workers(job))
        # Stops a worker, so that the job cannot finish first.
        (held, *_) = _workers(job)
        os.kill(held, signal.SIGSTOP)
        try:
            found = until(lambda: len(workers := _workers(job)) == 2 and workers)
            flow.send_signal(signal.SIGKILL)
        finally:
            os.kill(held, signal.SIGCONT)
        until(lambda: not any(map(start_time, (job, *found))))


def _workers(job: int) -> list[int]:
    """The forks of the process that the job has started for them."""
    parents = set(children(job)) & set(processes("beam.runners.worker"))
    return sorted(worker for parent in parents for worker in children(parent))


def test_a_process_ends_whose_parent_has_ended_before_it_looked() -> None:
    script = (
        "from runtime.child_processes import end_with_parent; end_with_parent(); print('alive')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, PARENT_VARIABLE: "1"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")


def test_a_job_that_a_user_starts_depends_on_no_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PARENT_VARIABLE, raising=False)
    end_with_parent()
    assert child_environment()[PARENT_VARIABLE] == str(os.getpid())
    assert PARENT_VARIABLE not in os.environ


def test_a_module_that_fails_is_an_error_with_its_last_line(tmp_path: Path) -> None:
    run_module("flows.scenes", f"--output={tmp_path}", "--count=1")
    with pytest.raises(UserError, match=r"^0 scenes from seed 0: expected at least 1 scene "):
        run_module("flows.scenes", f"--output={tmp_path}", "--count=0")
