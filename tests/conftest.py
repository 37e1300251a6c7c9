"""Shared inputs, each made once for all test processes, and which tests run in one process."""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import store
from forks import Forks
from forks import forks as running_forks
from hypothesis import settings
from jobs import ANY_MODEL, IN_MEMORY, REAL, SMALL, Job, Trained, copy_store
from operated import Local, local_services
from servers import PATIENCE_S, free_port, serving
from xdist.scheduler import LoadScopeScheduling

from flows.scenes import write_scenes
from runtime.command_line import run_main
from runtime.locks import lock
from schemas.config import InferConfig, IngestConfig, TrainConfig

# `import_quickly` keeps from collection what exists; DuckDB complains of leaks if that includes it.
atexit.register(gc.unfreeze)
# Collections take a tenth of the time of tests with Keras.
gc.set_threshold(50_000, 20, 20)

SERVERS = {
    "flink": (
        "beam/runners/test_flink.py",
        "beam/runners/test_runners.py",
        "flows/flink/test_cluster.py",
    ),
    "store": (
        "beam/test_store.py",
        "beam/test_packed_on_store.py",
        "flows/test_store.py",
        "analysis/test_store.py",
        "runtime/test_archive.py",
        "runtime/test_storage.py",
        "model/test_shards.py",
    ),
}
"""Files whose tests share servers; all others share nothing but their inputs."""

FIRST = (
    "flows/test_failures.py",
    "store",
    "flink",
    "flows/test_deployed.py",
    "flows/test_unattended.py",
    "model/test_resume.py",
    "model/test_gate.py",
    "flows/test_whole_flow.py",
    "flows/test_backfill.py",
    "model/test_train.py",
    "beam/infer/test_kill.py",
    "beam/ingest/test_kill.py",
)
"""The slowest groups, the slowest first."""

SLOW = {"local", "prefect_home", "cluster", "bucket", "trained", "tables", "plain_model"}
"""Fixtures that take more than a few seconds: ``make unit-fast`` leaves their tests out."""

SLOW_FILES = (
    "beam/ingest/test_sources.py",
    "beam/ingest/test_split.py",
    "beam/test_prune.py",
    "flows/deploy/test_deployments.py",
    "flows/test_backfill.py",
    "flows/test_doctor.py",
    "flows/test_whole_flow.py",
    "model/test_encoders.py",
    "model/test_fit.py",
    "model/test_gate.py",
    "model/test_jax.py",
    "model/test_onnx.py",
    "model/test_resume.py",
    "model/test_reuse.py",
    "model/test_rollback.py",
    "model/test_sweep.py",
    "model/test_train.py",
)
"""Files that train, start a server or run many pipelines: left out, too."""


def pytest_configure() -> None:
    """Sets variables before the modules that read them are imported, and allows slow machines."""
    settings.register_profile("pipeline", deadline=None, database=None)
    settings.load_profile("pipeline")
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = str(PATIENCE_S)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    # JAX compiles in half the time, to slower code.
    quickly = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    os.environ["XLA_FLAGS"] = quickly
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    # Where one of these is set, pytest compares large values line by line, which takes minutes.
    for name in ("CI", "BUILD_NUMBER"):
        os.environ.pop(name, None)


def _group(nodeid: str) -> str:
    """Tests of one group run in one process: those of a file, or of several."""
    path = nodeid.partition("::")[0].removeprefix("tests/")
    return next((group for group, files in SERVERS.items() if path in files), path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks slow tests, and puts the slowest groups first: a long one must not start last."""
    ranks = {group: rank for rank, group in enumerate(FIRST)}
    for item in items:
        path = item.nodeid.partition("::")[0].removeprefix("tests/")
        if path in SLOW_FILES or SLOW.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    items.sort(key=lambda item: ranks.get(_group(item.nodeid), len(ranks)))


class Groups(LoadScopeScheduling):
    """Deals groups out to test processes, each to the next that is free."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups:
    """Called by pytest-xdist, whose own groups pytest 9.2 does not see."""
    return Groups(config, log)


@pytest.fixture(scope="session", autouse=True)
def _homes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Temporary home folders, for Prefect and in general, that every test process inherits."""
    home = tmp_path_factory.mktemp("home")
    os.environ["HOME"] = str(home)
    os.environ["PREFECT_HOME"] = str(home / "prefect")


Once = Callable[[str, Callable[[Path], Any]], Any]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Fills a folder in the first test process that asks for it; the others wait and reuse it.

    What the function returns is passed on as JSON.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def make(name: str, fill: Callable[[Path], Any]) -> Any:
        folder, made = base / f"shared-{name}", base / f"shared-{name}.json"
        with lock(base / f"shared-{name}.lock", wait=True):
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                made.write_text(json.dumps(fill(folder)))
        return json.loads(made.read_text())

    return make


@pytest.fixture(scope="session")
def real() -> Path:
    """The 200 real pairs in Kaggle's layout."""
    if not REAL.is_dir():
        pytest.skip(f"the real pairs are not at {REAL}")
    return REAL


@pytest.fixture(scope="session")
def scenes(once: Once) -> Path:
    """40 synthetic pairs of 160x120."""

    def fill(folder: Path) -> str:
        write_scenes(str(folder), 40, seed=1, width=160, height=120)
        return str(folder)

    return Path(once("scenes", fill))


@pytest.fixture(scope="session")
def dataset(once: Once, scenes: Path) -> Path:
    """The scenes as a published dataset."""

    def fill(folder: Path) -> str:
        from beam.ingest.pipeline import run
        from beam.runners.run import pipeline_options

        return run(str(scenes), str(folder), SMALL, pipeline_options(IN_MEMORY))

    return Path(once("datasets", fill))


@pytest.fixture(scope="session")
def real_dataset(once: Once, real: Path) -> Path:
    """The real pairs as a published dataset of the default configuration."""

    def fill(folder: Path) -> str:
        from beam.ingest.pipeline import run
        from beam.runners.run import pipeline_options

        return run(str(real), str(folder), IngestConfig(), pipeline_options(IN_MEMORY))

    return Path(once("real", fill))


@pytest.fixture
def copy(scenes: Path, tmp_path: Path) -> Path:
    """A copy of the scenes that a test may change."""
    return Path(shutil.copytree(scenes, tmp_path / "raw"))


@pytest.fixture(scope="session")
def plain_model(once: Once) -> Path:
    """An untrained network as a file with its graph beside it, with which a job starts fast."""

    def fill(folder: Path) -> str:
        import keras

        from model.export import export_openvino
        from model.unet import unet

        keras.utils.set_random_seed(0)
        path = folder / "plain.keras"
        unet(13, filters=2).save(path)
        export_openvino(path, folder / "openvino")
        return str(path)

    return Path(once("model", fill))


@pytest.fixture(scope="session")
def training(dataset: Path, once: Once) -> tuple[Path, Trained]:
    """The folder of the one training that all tests share, and its model; nothing writes to it."""
    # In float32 on any machine: in 16 bits, an epoch's metrics are not those of the saved network.
    config = TrainConfig(
        architecture="unet",
        model_name="small-unet",
        epochs=2,
        filters=4,
        batch_size=8,
        precision="float32",
    )

    def fill(folder: Path) -> list[str]:
        from model import tracking
        from model.train import run

        # The training ends before the first sample of the default interval would be taken.
        tracking.SYSTEM_METRICS_SECONDS = 1
        uri = f"sqlite:///{folder}/mlflow.db"
        model = run(str(dataset), config, uri, ANY_MODEL, state=str(folder / "training"))
        return [str(folder), model]

    made, model = once("trained", fill)
    return Path(made), Trained(model, f"sqlite:///{made}/mlflow.db", config)


@pytest.fixture(scope="module")
def trained(training: tuple[Path, Trained], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A network of 4 filters after 2 epochs: enough to be a model, not to be a good one.

    Each file has its own copy of the store, since tests write to it.
    """
    made, model = training
    folder = tmp_path_factory.mktemp("mlflow") / "store"
    copy_store(made, folder)
    return replace(model, tracking_uri=f"sqlite:///{folder}/mlflow.db")


@pytest.fixture(scope="session")
def tables(scenes: Path, dataset: Path, training: tuple[Path, Trained], once: Once) -> Path:
    """Tables as in the cookbook: v1 and v2 over ``lyft``, v1 over ``driveA`` and ``driveB``.

    They are in ``outputs/predictions``, beside the MLflow store in ``mlflow``. Both versions are
    the network of ``trained``, but the second predicts at half the size.
    """

    def fill(folder: Path) -> str:
        import mlflow

        from beam.infer.pipeline import run as infer
        from beam.runners.run import pipeline_options
        from model import tracking

        made, model = training
        copy_store(made, folder / "mlflow")
        tracking_uri = f"sqlite:///{folder}/mlflow/mlflow.db"
        # A client registers a version's files by the process's own URI, whatever its own is.
        tracking.connect(tracking_uri)
        client = mlflow.MlflowClient(tracking_uri)
        client.rename_registered_model(model.config.model_name, "lyft-unet")
        first = client.get_model_version("lyft-unet", "1")
        client.create_model_version("lyft-unet", first.source, first.run_id)
        half = {"height": SMALL.height // 2, "width": SMALL.width // 2}
        jobs = [(1, None, str(dataset), "lyft", {}), (2, None, str(dataset), "lyft", half)]
        paths = sorted(path.name for path in (scenes / "CameraRGB").iterdir())
        for drive, names in (("driveA", paths[:20]), ("driveB", paths[20:])):
            for camera in ("CameraRGB", "CameraSeg"):
                (folder / drive / camera).mkdir(parents=True)
                for name in names:
                    shutil.copy(scenes / camera / name, folder / drive / camera)
            jobs.append((1, str(folder / drive), None, drive, {}))
        for version, source, place, name, size in jobs:
            infer(
                f"models:/lyft-unet/{version}",
                source,
                place,
                str(folder / "outputs/predictions"),
                InferConfig(source_name=name, **size),
                tracking_uri,
                options=pipeline_options(IN_MEMORY),
            )
        return str(folder / "outputs/predictions")

    return Path(once("tables", fill))


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Runs commands in forks of a process that has imported what they need."""
    with running_forks(tmp_path_factory.mktemp("forks")) as running:
        yield running


@pytest.fixture
def job(forks: Forks) -> Job:
    """Runs ``python -m module …`` as a user does."""
    return forks.job


@pytest.fixture
def job_here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Job:
    """As ``job``, but in the test's process, where what it imports has been imported already."""

    def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        found = importlib.import_module(module)
        if hasattr(found, "__path__"):
            found = importlib.import_module(f"{module}.__main__")
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [module, *arguments])
            code = run_main(found.main)
        said = capsys.readouterr()
        return subprocess.CompletedProcess([module, *arguments], code, said.out, said.err)

    return run


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[store.Store]:
    """A real S3 server with a bucket, which this process and its children are set up to use."""
    with store.store(tmp_path_factory.mktemp("store")) as started:
        yield started


@pytest.fixture(scope="session")
def prefect_home(once: Once) -> Path:
    """The folder of a Prefect server that has made its database: more than half of a start.

    Other servers start with a copy of it.
    """

    def fill(folder: Path) -> str:
        home, port = folder / "prefect", free_port()
        command = (sys.executable, "-m", "prefect", "server", "start", "--host=127.0.0.1")
        health, settings = f"http://127.0.0.1:{port}/api/health", {"PREFECT_HOME": str(home)}
        with serving([*command, f"--port={port}"], health, folder / "server.log", settings):
            return str(home)

    return Path(once("prefect", fill))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, prefect_home: Path) -> Iterator[Local]:
    """The servers and workers of `make up`; each file has its own, with what its runs leave."""
    root = tmp_path_factory.mktemp("work") / "outputs/local"
    with local_services(root, prefect_home) as services:
        yield services
