"""A rerun without changes imports no heavy module and keeps the report."""

import logging
from pathlib import Path

import pytest
from jobs import SMALL_ARGUMENTS, Trained, python

from flows.tasks import report
from runtime.command_line import to_arguments

PARTITION = "model=lyft-unet/version=v1/source=lyft"

HEAVY = """
import runpy, sys
try:
    runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=True)
except SystemExit as end:
    print(sorted({"apache_beam", "mlflow", "tensorflow", "keras"} & set(sys.modules)))
    sys.exit(end.code)
"""


def _imported(module: str, *arguments: str) -> str:
    """Which heavy modules a job has imported that finds its output published."""
    done = python("-c", HEAVY.replace("sys.argv[1]", repr(module)), *arguments)
    assert done.returncode == 0, done.stderr
    assert "nothing has changed" in done.stderr
    return done.stdout.splitlines()[-1]


def test_up_to_date_jobs_import_nothing_heavy(
    dataset: Path, scenes: Path, trained: Trained, tables: Path, tmp_path: Path
) -> None:
    datasets = dataset.parents[1]
    ingest = (f"--source={scenes}", f"--output={datasets}", *SMALL_ARGUMENTS)
    assert _imported("beam.ingest", *ingest) == "[]"
    store = f"--tracking_uri={trained.tracking_uri}"
    train = (f"--dataset={dataset}", store, "--reuse", f"--state={tmp_path}", "--floor=0")
    assert _imported("model.train", *train, *to_arguments(trained.config)) == "[]"
    store = f"--tracking_uri=sqlite:///{tables.parents[1]}/mlflow/mlflow.db"
    infer = ("--model=models:/lyft-unet/1", f"--dataset={dataset}", f"--output={tables}", store)
    infer = (*infer, "--source_name=lyft")
    assert _imported("beam.infer", *infer) == "[]"


def test_report_is_kept_while_inputs_and_files_are_unchanged(
    tables: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    run_job = report.run_job

    def run(module: str, *rest: object) -> object:
        made.append(module)
        return run_job(module, *rest)

    monkeypatch.setattr(report, "run_job", run)
    monkeypatch.setattr(report, "get_run_logger", logging.getLogger)
    monkeypatch.setattr(report, "publish_report", lambda _: None)
    drawn: list[str] = []
    monkeypatch.setattr(report, "publish_examples", lambda _, place: drawn.append(place))

    def write(server: str = "") -> Path:
        made.clear()
        given = (str(tmp_path), str(tables), PARTITION, str(dataset), server)
        return Path(report.write_report.fn(*given))

    page = write()
    assert made
    text, panel = page.read_bytes(), page.with_suffix(".png").read_bytes()
    assert write() == page
    assert not made
    assert len(drawn) == 2

    for damage in (
        lambda: page.write_bytes(text[:-1]),
        lambda: page.write_bytes(text.replace(b"Roads", b"Walls", 1)),
        page.unlink,
        lambda: page.with_suffix(".png").write_bytes(panel[:-1]),
        page.with_suffix(".png").unlink,
    ):
        damage()
        write()
        assert made
        assert (page.read_bytes(), page.with_suffix(".png").read_bytes()) == (text, panel)
    # The page links to the server.
    write("http://127.0.0.1:5001")
    assert made
    run_file = report.run_file
    monkeypatch.setattr(report, "run_file", lambda *_: str(tmp_path / "run.parquet"))
    (tmp_path / "run.parquet").write_bytes(Path(run_file(tables, PARTITION)).read_bytes() + b"x")
    write("http://127.0.0.1:5001")
    assert made
