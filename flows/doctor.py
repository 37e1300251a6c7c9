"""Checks this machine and the services that it uses: ``python -m flows.doctor``.

The exit code is 1 if something must be fixed before a run can succeed.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from flows.deploy.deployments import PROJECT
from flows.lifecycle.job_process import JobCallbacks, JobError, run_job
from runtime.command_line import Parser, run_main
from runtime.errors import UserError, redact_credentials
from runtime.mlflow_files import find_former_folder, rewrite_paths
from runtime.mlflow_store import TRACKING_URI, sqlite_file
from runtime.processor import available_cores
from runtime.services import ROOT, State, prefect_api_url
from runtime.storage import is_remote, local_root, require_writable
from runtime.table import table

Level = Literal["ok", "note", "fix"]

_GIB = 1 << 30
_WARN_BELOW, _FAIL_BELOW = 10 * _GIB, 1 * _GIB
_TIMEOUT_S = 10
_REBUILD = "remove .venv, then make test"
_LIST_GPUS = (
    "import json, keras, tensorflow as tf; "
    "print(json.dumps([keras.backend.backend(), len(tf.config.list_physical_devices('GPU'))]))"
)


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table.

    Attributes:
        level: ``fix`` if a run cannot succeed, ``note`` if it still can.
        advice: what to do; empty if nothing is to be done.
    """

    level: Level
    subject: str
    found: str
    advice: str = ""


def check_python(bound: str, found: tuple[int, int, int]) -> Finding:
    """Checks Python's version against the project's ``requires-python``."""
    text = ".".join(map(str, found))
    if text in SpecifierSet(bound):
        return Finding("ok", "python", text)
    return Finding("fix", "python", f"{text}, expected {bound}", f"{_REBUILD} PYTHON=python3.12")


def check_packages(
    required: Sequence[str], installed: Callable[[str], str] = version
) -> Iterator[Finding]:
    """Checks the installed packages against pyproject.toml; yields a finding for each mismatch."""
    mismatches = 0
    for requirement in map(Requirement, required):
        if requirement.marker and not requirement.marker.evaluate():
            continue
        name, bounds = requirement.name, requirement.specifier
        try:
            found = installed(name)
        except PackageNotFoundError:
            found = "nothing"
        if found == "nothing" or not bounds.contains(found, prereleases=True):
            mismatches += 1
            advice = f"pip install '{name}{bounds}', or {_REBUILD}"
            yield Finding("fix", name, f"{found}, expected {bounds}", advice)
    if not mismatches:
        yield Finding("ok", "packages", f"{len(required)} as pyproject.toml bounds them")


def check_beam() -> Finding:
    """Ingests four synthetic scenes in a temporary folder, with one Beam worker per core."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lyft-doctor-") as scratch:
        try:
            no_log = JobCallbacks(lambda _: None)
            run_job("flows.scenes", [f"--output={scratch}/raw", "--count=4"], no_log)
            arguments = [f"--source={scratch}/raw", f"--output={scratch}/out", "--name=doctor"]
            run_job("beam.ingest", [*arguments, "--validation=0", "--test=0"], no_log)
        except (JobError, UserError) as error:
            last = str(error).splitlines()[-1]
            return Finding("fix", "beam", last, "run make test; /tmp must be writable and not full")
    cores = available_cores()
    return Finding("ok", "beam", f"{cores} workers, 4 pairs in {time.monotonic() - started:.0f} s")


def check_gpu(script: str = _LIST_GPUS, driver: str = "nvidia-smi") -> Finding:
    """Compares the number of GPUs that Keras sees, in a subprocess, with the driver's list."""
    listed = 0
    if path := shutil.which(driver):
        asked = subprocess.run([path, "-L"], capture_output=True, text=True, check=False)
        if asked.returncode != 0:
            said = (asked.stdout + asked.stderr).strip().splitlines() or [
                f"{driver} ends with an error"
            ]
            return Finding("fix", "gpu", said[0], "mend NVIDIA's driver, or remove it")
        listed = asked.stdout.count("GPU ")
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["the process ended without output"])[-1]
        return Finding("fix", "keras", f"cannot be imported: {last}", _REBUILD)
    backend, seen = json.loads(done.stdout.splitlines()[-1])
    if backend != "tensorflow":
        found = f"backend {backend}, expected tensorflow"
        return Finding("fix", "keras", found, "unset KERAS_BACKEND")
    if seen < listed:
        advice = "pip install -e '.[gpu]'; CUDA_VISIBLE_DEVICES must not hide it"
        return Finding("fix", "gpu", f"Keras sees {seen}, the driver shows {listed}", advice)
    if not seen:
        return Finding("ok", "gpu", "none; training runs on the CPU")
    return Finding("ok", "gpu", f"{seen}, seen by Keras")


def check_disk(
    folder: Path, warn_below: int = _WARN_BELOW, fail_below: int = _FAIL_BELOW
) -> Finding:
    """Checks the free disk space below ``folder``; the thresholds are in bytes."""
    free = shutil.disk_usage(_nearest_existing(folder)).free
    found = f"{free / _GIB:.1f} GiB free for {folder}"
    if free < fail_below:
        return Finding("fix", "disk", found, f"free {fail_below / _GIB:.0f} GiB or more")
    if free < warn_below:
        return Finding("note", "disk", found, "python -m flows.plan says what a run needs")
    return Finding("ok", "disk", found)


def check_store(uri: str) -> Finding:
    """Checks that outputs can be written to an object store; leaves nothing behind."""
    try:
        require_writable(uri)
    except UserError as error:
        advice = "check the place, the AWS_ variables and the store"
        return Finding("fix", "outputs", str(error), advice)
    return Finding("ok", "outputs", f"{uri} can be written")


def check_writable(folder: Path) -> Finding:
    """Checks that outputs can be written to a folder; leaves nothing behind."""
    existing = _nearest_existing(folder)
    for path in (folder, *folder.parents):
        # A link whose target is missing, such as a disk that is not mounted, is in the way, too.
        if existing in path.parents and os.path.lexists(path):
            advice = "remove it, mount what it points to, or name another --output"
            return Finding("fix", "outputs", f"{path} is no folder", advice)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        advice = f"give this user the right to write {existing}, or name another --output"
        return Finding("fix", "outputs", f"{existing}: {error.strerror}", advice)
    return Finding("ok", "outputs", f"{folder} can be written")


def check_prefect(api_url: str | None) -> Iterator[Finding]:
    """Checks that Prefect's server answers, has our minor version and a worker for each pool."""
    if not api_url:
        yield Finding("note", "prefect", "no server is named", "make up, or set PREFECT_API_URL")
        return
    ours = version("prefect")
    user = os.environ.get("PREFECT_API_AUTH_STRING")
    try:
        theirs = json.loads(_fetch(f"{api_url}/admin/version", user=user))
        pools = json.loads(_fetch(f"{api_url}/work_pools/filter", b"{}", user=user))
    except (OSError, ValueError) as error:
        found = f"{api_url} does not answer: {error}"
        advice = "make up, or correct PREFECT_API_URL"
        if str(error) == "Unauthorized":
            found = f"{api_url} rejects the credentials"
            advice = "set PREFECT_API_AUTH_STRING to the server's"
        yield Finding("fix", "prefect", found, advice)
        return
    if _minor(theirs) != _minor(ours):
        found = f"server {theirs}, here {ours}"
        yield Finding("fix", "prefect", found, "bring both to the same minor version")
        return
    yield Finding("ok", "prefect", f"{api_url}, {theirs}")
    status = {pool["name"]: pool["status"] for pool in pools}
    for pool in ("cpu", "gpu"):
        if pool not in status:
            yield Finding("note", f"pool {pool}", "does not exist", "make up")
        elif status[pool] != "READY":
            advice = f"make up, or prefect worker start --pool {pool}"
            yield Finding("note", f"pool {pool}", "no worker is online", advice)
        else:
            yield Finding("ok", f"pool {pool}", "a worker is online")


def check_mlflow(tracking_uri: str) -> Finding:
    """Checks that MLflow's server answers and has our minor version, or that its database opens."""
    if file := sqlite_file(tracking_uri):
        return _check_mlflow_database(file)
    uri = redact_credentials(tracking_uri)
    if not tracking_uri.startswith(("http://", "https://")):
        found = f"{uri!r} is neither sqlite:///FILE nor http://HOST"
        return Finding("fix", "mlflow", found, "correct --tracking_uri")
    ours = version("mlflow")
    try:
        theirs = _fetch(f"{tracking_uri}/version").decode()
    except (OSError, ValueError) as error:
        found = f"{uri} does not answer: {error}"
        return Finding("fix", "mlflow", found, "make up, or correct --tracking_uri")
    if _minor(theirs) != _minor(ours):
        found = f"server {theirs[:20]}, here {ours}"
        return Finding("fix", "mlflow", found, "bring both to the same minor version")
    return Finding("ok", "mlflow", f"{uri}, {theirs}")


def _check_mlflow_database(file: Path) -> Finding:
    if not file.exists():
        folder = check_writable(file.parent)
        return Finding(folder.level, "mlflow", f"{file} is made by the first run", folder.advice)
    if not os.access(file, os.W_OK) or not os.access(file.parent, os.W_OK):
        return Finding("fix", "mlflow", f"{file} cannot be written", "make the file writable")
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as store:
            store.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error as error:
        advice = "name another --tracking_uri, or restore the file"
        return Finding("fix", "mlflow", f"{file} is not an MLflow store: {error}", advice)
    if old := find_former_folder(file):
        found = f"{file} names its files in {old}, which is gone; they are here"
        return Finding("fix", "mlflow", found, "python -m flows.doctor --repair")
    return Finding("ok", "mlflow", str(file))


def _fetch(address: str, body: bytes | None = None, user: str | None = None) -> bytes:
    """The body of a server's response; ``user`` is ``name:password`` for basic auth."""
    headers = {"Content-Type": "application/json"}
    if user:
        headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    request = urllib.request.Request(address, body, headers)  # noqa: S310 - the user's server
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            return bytes(answer.read())
    except http.client.HTTPException as error:
        raise OSError(f"its answer is not HTTP ({type(error).__name__})") from error
    except urllib.error.URLError as error:
        raise OSError(str(error.reason)) from error


def _minor(release: str) -> list[str]:
    return release.split(".")[:2]


def _nearest_existing(folder: Path) -> Path:
    """The folder itself, or its nearest parent that exists."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def project_requirements() -> tuple[str, list[str]]:
    """Required versions of Python and packages, from pyproject.toml or the installed metadata."""
    file = PROJECT / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        return project["requires-python"], project["dependencies"]
    installed = requires("lyft-unet-pipeline") or []
    return ">=3.11,<3.14", [text for text in installed if "extra ==" not in text]


def run_checks(output: str, tracking_uri: str, api_url: str | None) -> list[Finding]:
    """Runs all checks, the slow ones in parallel."""
    python, packages = project_requirements()
    with ThreadPoolExecutor() as pool:
        slow = [pool.submit(check_beam), pool.submit(check_gpu)]
        quick = [
            check_python(python, sys.version_info[:3]),
            *check_packages(packages),
            check_disk(Path(local_root(output)).absolute()),
            check_store(output) if is_remote(output) else check_writable(Path(output).absolute()),
            *check_prefect(api_url),
            check_mlflow(tracking_uri),
        ]
        return quick + [future.result() for future in slow]


def main(arguments: Sequence[str]) -> str:
    """The command line; returns the table, or prints it and exits with 1."""
    parser = Parser(prog="python -m flows.doctor", description=__doc__)
    parser.add_argument("--output", default="outputs", help="root of all outputs")
    parser.add_argument(
        "--tracking_uri",
        help="MLflow store or server (default: MLFLOW_TRACKING_URI, or what make up runs)",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="make an MLflow store that was moved name its files where they are now",
    )
    args = parser.parse_args(arguments)
    state = State.load(Path(ROOT))
    local = state.url("mlflow") if state.is_running("mlflow") else TRACKING_URI
    mlflow = args.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or local
    api_url = os.environ.get("PREFECT_API_URL") or prefect_api_url(Path(ROOT))
    if args.repair and (file := sqlite_file(mlflow)) and (old := rewrite_paths(file)):
        print(f"{file}: its files are no longer named in {old}", file=sys.stderr)
    findings = run_checks(args.output, mlflow, api_url)
    rows = [(row.level, row.subject, row.found, row.advice) for row in findings]
    text = table(("", "what", "found", "what to do"), rows)
    if any(finding.level == "fix" for finding in findings):
        print(text)
        sys.exit(1)
    return text


if __name__ == "__main__":
    sys.exit(run_main(main))
