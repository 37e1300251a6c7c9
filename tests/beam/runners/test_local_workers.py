"""Worker processes of the local runner."""

import os
import signal
import sys
from pathlib import Path

import apache_beam as beam
import pytest
from jobs import TWO_WORKERS
from operated import children
from servers import free_port, until

from beam.runners import local_workers
from beam.runners.run import pipeline_options, run_pipeline
from beam.shared.crash_journal import _DEAD_WORKER
from runtime.services import start_time


def test_workers_are_forks_of_one_process_which_has_imported_what_they_need(
    tmp_path, monkeypatch
) -> None:
    local_workers.prepare("beam.ingest.records")
    # What changes after the start of that process counts, too.
    monkeypatch.setenv("LATE", "set")
    monkeypatch.chdir(tmp_path)
    seen = tmp_path / "seen"
    seen.mkdir()

    # Pickled by value: a worker cannot import this module.
    def describe(folder: str) -> None:
        known = "pandas" in sys.modules, "beam.ingest.records" in sys.modules
        text = " ".join(map(str, (os.getppid(), os.getcwd(), *known, os.environ["LATE"])))
        Path(folder, str(os.getpid())).write_text(text)

    def build(root: beam.Pipeline) -> None:
        elements = root | beam.Create([str(seen)] * 8, reshuffle=True)
        _ = elements | beam.Map(describe)

    run_pipeline(build, pipeline_options(TWO_WORKERS))
    workers = {int(path.name): path.read_text().split() for path in seen.iterdir()}
    parent = int(next(iter(workers.values()))[0])
    expected = [str(parent), str(tmp_path), "False", "True", "set"]
    assert all(found == expected for found in workers.values())
    assert len(workers) == 2
    assert not any(map(start_time, (parent, *workers)))


def test_a_worker_that_dies_ends_the_pipeline() -> None:
    def build(root: beam.Pipeline) -> None:
        dying = beam.Map(lambda _: os.kill(os.getpid(), signal.SIGKILL))
        _ = root | beam.Create([None]) | dying

    with pytest.raises(RuntimeError, match=_DEAD_WORKER):
        run_pipeline(build, pipeline_options(TWO_WORKERS))


def test_workers_that_cannot_start_end_the_pipeline() -> None:
    def build(root: beam.Pipeline) -> None:
        # The runner waits for the output of the first step, too.
        _ = root | beam.Create([1, 2]) | beam.combiners.Count.PerElement()

    local_workers.prepare("no.such.module")
    with pytest.raises(RuntimeError, match=_DEAD_WORKER):
        run_pipeline(build, pipeline_options(TWO_WORKERS))


def test_an_interrupt_ends_workers_that_are_not_even_connected() -> None:
    nowhere = {
        "WORKER_ID": "1",
        "CONTROL_API_SERVICE_DESCRIPTOR": f"url: 'localhost:{free_port()}'",
        "PIPELINE_OPTIONS": "{}",
    }
    started: list[int] = []

    def interrupt() -> None:
        with local_workers.worker_parent() as parent:
            parent.fork(nowhere, lambda: None)
            started.extend((parent.pid, *until(lambda: children(parent.pid))))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert len(started) == 2
    assert not any(map(start_time, started))
