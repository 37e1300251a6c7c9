"""Checks of `python -m flows.doctor`, on machines and servers with and without problems."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from inference import run_infer
from jobs import ROOT, copy_store
from servers import answering, free_port

from flows import doctor
from flows.doctor import Finding
from runtime import mlflow_files
from runtime.errors import UserError
from runtime.mlflow_files import rewrite_paths


def _levels(findings) -> dict[str, str]:
    return {one.subject: one.level for one in findings}


@contextmanager
def _answers(pages: dict[str, str]) -> Iterator[str]:
    """A server that answers with these pages, for both GET and POST."""

    def answer(path: str) -> tuple[int, bytes]:
        return (200, pages[path].encode()) if path in pages else (404, b"")

    with answering(answer) as address:
        yield address


def test_mismatched_versions_are_found() -> None:
    python, packages = doctor.project_requirements()
    assert doctor.check_python(python, (3, 12, 1)).level == "ok"
    assert doctor.check_python(python, (3, 10, 9)).level == "fix"
    assert doctor.check_python(python, (3, 14, 0)).level == "fix"
    assert [one.level for one in doctor.check_packages(packages)] == ["ok"]

    def installed(name: str) -> str:
        if name == "kornia-rs":
            raise PackageNotFoundError(name)
        return "0.155.0" if name == "fastapi" else version(name)

    found = list(doctor.check_packages(packages, installed))
    assert _levels(found) == {"fastapi": "fix", "kornia-rs": "fix"}
    fastapi = next(one for one in found if one.subject == "fastapi")
    assert "0.155.0, expected" in fastapi.found
    assert "pip install 'fastapi" in fastapi.advice


def test_beam_check_ingests_or_reports_the_reason(monkeypatch, tmp_path) -> None:
    assert doctor.check_beam().level == "ok"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    broken = tmp_path / "apache_beam.py"
    broken.write_text("raise ImportError('grpc is broken')")
    found = doctor.check_beam()
    assert found.level == "fix"
    assert "grpc is broken" in found.found


def test_gpus_invisible_to_keras_are_found(tmp_path) -> None:
    driver = tmp_path / "smi"
    driver.write_text("#!/bin/sh\necho 'GPU 0: one'\necho 'GPU 1: two'\n")
    driver.chmod(0o755)

    def found(backend: str, seen: int, driver: str = "no-such-driver") -> Finding:
        return doctor.check_gpu(f"print('{json.dumps([backend, seen])}')", driver)

    assert found("tensorflow", 0).level == "ok"
    assert found("tensorflow", 2, str(driver)).level == "ok"
    hidden = found("tensorflow", 1, str(driver))
    assert (hidden.level, hidden.found) == ("fix", "Keras sees 1, the driver shows 2")
    assert found("jax", 0).level == "fix"
    failing = tmp_path / "failing"
    failing.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    failing.chmod(0o755)
    failed = found("tensorflow", 0, str(failing))
    assert (failed.level, failed.found) == ("fix", "NVIDIA-SMI has failed")
    broken = doctor.check_gpu("raise ImportError('no libcudart')")
    assert broken.level == "fix"
    assert "no libcudart" in broken.found


def test_full_or_read_only_disk_is_found(tmp_path) -> None:
    missing = tmp_path / "not" / "yet"
    assert doctor.check_disk(missing, warn_below=0, fail_below=0).level == "ok"
    assert doctor.check_disk(missing, warn_below=1 << 60, fail_below=0).level == "note"
    assert doctor.check_disk(missing, warn_below=1 << 60, fail_below=1 << 60).level == "fix"
    assert doctor.check_writable(missing).level == "ok"
    assert not missing.exists()
    assert list(tmp_path.iterdir()) == []
    # A folder that not even root may write to.
    assert doctor.check_writable(Path("/proc/self")).level == "fix"
    (tmp_path / "file").touch()
    (tmp_path / "disk").symlink_to(tmp_path / "not-mounted")
    for wrong, at in (("file", "file"), ("file/below", "file"), ("disk/outputs", "disk")):
        found = doctor.check_writable(tmp_path / wrong)
        assert (found.level, found.found) == ("fix", f"{tmp_path / at} is no folder")


def test_prefect_server_problems_are_found() -> None:
    ours = version("prefect")
    pools = json.dumps([{"name": "cpu", "status": "READY"}, {"name": "gpu", "status": "NOT_READY"}])

    def found(theirs: str, pools: str) -> dict[str, str]:
        pages = {"/api/admin/version": json.dumps(theirs), "/api/work_pools/filter": pools}
        with _answers(pages) as address:
            return _levels(doctor.check_prefect(f"{address}/api"))

    assert found(ours, pools) == {"prefect": "ok", "pool cpu": "ok", "pool gpu": "note"}
    assert found(ours, "[]") == {"prefect": "ok", "pool cpu": "note", "pool gpu": "note"}
    assert found("2.20.1", pools) == {"prefect": "fix"}
    assert found(ours, "<html>") == {"prefect": "fix"}
    dead = f"http://127.0.0.1:{free_port()}/api"
    assert _levels(doctor.check_prefect(dead)) == {"prefect": "fix"}
    assert _levels(doctor.check_prefect(None)) == {"prefect": "note"}


def test_mlflow_problems_are_found(tmp_path, trained) -> None:
    with _answers({"/version": version("mlflow")}) as address:
        assert doctor.check_mlflow(address).level == "ok"
    with _answers({"/version": "2.1.0"}) as address:
        assert doctor.check_mlflow(address).level == "fix"
    assert doctor.check_mlflow(f"http://127.0.0.1:{free_port()}").level == "fix"
    assert doctor.check_mlflow("./mlruns").level == "fix"
    assert doctor.check_mlflow(trained.tracking_uri).level == "ok"
    assert doctor.check_mlflow(f"sqlite:///{tmp_path}/new/mlflow.db").level == "ok"
    assert not (tmp_path / "new").exists()
    (tmp_path / "broken.db").write_bytes(b"not a database, by its first bytes" * 100)
    assert doctor.check_mlflow(f"sqlite:///{tmp_path}/broken.db").level == "fix"


def test_moved_mlflow_store_is_reported_and_repaired(
    trained, training, scenes: Path, tmp_path: Path
) -> None:
    """As with a project's folder that gets another name."""
    before = tmp_path / "before"
    copy_store(training[0], before)
    store = Path(before.rename(tmp_path / "after"), "mlflow.db")
    moved = replace(trained, tracking_uri=f"sqlite:///{store}")
    with pytest.raises(UserError, match=rf"names its files in {before}, which is gone.*--repair"):
        run_infer(moved, tmp_path / "out", source=scenes)
    finding = doctor.check_mlflow(moved.tracking_uri)
    assert (finding.level, finding.advice) == ("fix", "python -m flows.doctor --repair")
    assert str(before) in finding.found

    arguments = ["--repair", f"--tracking_uri={moved.tracking_uri}", f"--output={tmp_path}"]
    with suppress(SystemExit):  # something else on this machine may need mending
        doctor.main(arguments)
    assert doctor.check_mlflow(moved.tracking_uri).level == "ok"
    run_infer(moved, tmp_path / "out", source=scenes)
    with closing(sqlite3.connect(store)) as opened:
        assert str(before) not in "\n".join(opened.iterdump())
    # A second time, there is nothing to do.
    assert rewrite_paths(store) is None


def test_store_in_a_folder_with_a_space_is_not_taken_for_moved(tmp_path: Path) -> None:
    """MLflow's server writes the paths as URIs, with %20 for a space."""
    store = tmp_path / "before ü" / "mlflow.db"
    files = store.parent / "artifacts" / "1"
    files.mkdir(parents=True)
    locations = [files.as_uri(), f"file://{files}", str(files)]
    with closing(sqlite3.connect(store)) as opened, opened:
        columns: dict[str, list[str]] = {}
        for table, column in mlflow_files._PATH_COLUMNS:
            columns.setdefault(table, []).append(column)
        for table, names in columns.items():
            opened.execute(f"CREATE TABLE {table} ({', '.join(names)})")
        opened.executemany(
            "INSERT INTO experiments (artifact_location) VALUES (?)", [(one,) for one in locations]
        )
    assert mlflow_files.find_former_folder(store) is None

    moved = Path(store.parent.rename(tmp_path / "after #2"), "mlflow.db")
    assert mlflow_files.rewrite_paths(moved) == str(store.parent)
    with closing(sqlite3.connect(moved)) as opened:
        found = [str(row[0]) for row in opened.execute("SELECT artifact_location FROM experiments")]
    now = moved.parent / "artifacts" / "1"
    assert found == [now.as_uri(), now.as_uri(), str(now)]


def test_command_prints_advice_and_exits_with_1(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        silent.close()
        arguments = (f"--output={tmp_path}", f"--tracking_uri=http://127.0.0.1:{port}")
        done = subprocess.run(
            [sys.executable, "-m", "flows.doctor", *arguments],
            cwd=ROOT,
            env={**os.environ, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1, done.stdout + done.stderr
    lines = {line.split()[1]: line for line in done.stdout.splitlines()[1:]}
    for what in ("prefect", "mlflow"):
        assert lines[what].startswith("fix")
        assert "make up" in lines[what]
    for what in ("python", "packages", "disk", "outputs", "beam"):
        assert not lines[what].startswith("fix")
    assert lines["gpu"]
    assert done.stderr == ""
