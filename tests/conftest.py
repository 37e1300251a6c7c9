"""Shared inputs: synthetic scenes drawn once, the real pairs where they are, one small dataset."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from flows.scenes import write_scenes
from schemas.config import GateConfig, InferConfig, IngestConfig, TrainConfig

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared/data/lyft"

SMALL = IngestConfig(name="small", height=32, width=48, block_length=1)
"""Small pictures, dealt out one by one: 40 of them give 32, 4 and 4."""

ANY_MODEL = GateConfig(floor=0)
"""The first version becomes champion, however poor it is."""

Job = Callable[..., subprocess.CompletedProcess[str]]


def pytest_configure() -> None:
    """Set before anything is imported that reads them; a busy machine is no failure of a test."""
    settings.register_profile("pipeline", deadline=None, database=None)
    settings.load_profile("pipeline")
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"


@pytest.fixture(scope="session", autouse=True)
def _homes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Homes of Prefect and of whatever looks for one: inherited by every process of the tests."""
    home = tmp_path_factory.mktemp("home")
    os.environ["HOME"] = str(home)
    os.environ["PREFECT_HOME"] = str(home / "prefect")


@pytest.fixture(scope="session")
def real() -> Path:
    """The 200 real pairs in Kaggle's layout."""
    if not REAL.is_dir():
        pytest.skip(f"the real pairs are not at {REAL}")
    return REAL


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 synthetic pairs of 160x120."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(str(folder), 40, seed=1, width=160, height=120)
    return folder


@pytest.fixture(scope="session")
def dataset(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes as a published dataset."""
    from beam.ingest import run
    from beam.pipeline import pipeline_options

    output = tmp_path_factory.mktemp("datasets")
    return run(str(scenes), str(output), SMALL, pipeline_options(IN_MEMORY))


@pytest.fixture
def copy(scenes: Path, tmp_path: Path) -> Path:
    """A copy of the scenes that a test may change."""
    return Path(shutil.copytree(scenes, tmp_path / "raw"))


@dataclass(frozen=True)
class Trained:
    """A registered model of the small dataset."""

    model: str
    tracking_uri: str
    config: TrainConfig

    @property
    def version(self) -> str:
        """As partitions write it."""
        return f"v{self.model.rpartition('/')[2]}"


@pytest.fixture(scope="session")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A network of 4 filters after 2 epochs: enough to be a model, not to be a good one."""
    from model import tracking
    from model.train import run

    # Over before the first of the samples that a real training takes.
    tracking.SYSTEM_METRICS_SECONDS = 1
    folder = tmp_path_factory.mktemp("mlflow")
    config = TrainConfig(model_name="small-unet", epochs=2, filters=4, batch_size=8)
    tracking_uri = f"sqlite:///{folder}/mlflow.db"
    model = run(str(dataset), config, tracking_uri, ANY_MODEL, state=str(folder / "training"))
    return Trained(model, tracking_uri, config)


@pytest.fixture(scope="session")
def tables(scenes: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables as in the cookbook: v1 and v2 over ``lyft``, v1 over ``driveA`` and ``driveB``."""
    from beam.infer import run as infer
    from beam.pipeline import pipeline_options
    from model.train import run as train

    folder = tmp_path_factory.mktemp("tables")
    tracking_uri = f"sqlite:///{folder}/mlflow.db"
    first, second = (
        train(
            str(dataset),
            TrainConfig(epochs=epochs, filters=filters, batch_size=8),
            tracking_uri,
            GateConfig(promote="always"),
            state=str(folder / "training"),
        )
        for epochs, filters in ((2, 4), (1, 2))
    )
    jobs = [(first, None, str(dataset), "lyft"), (second, None, str(dataset), "lyft")]
    paths = sorted(path.name for path in (scenes / "CameraRGB").iterdir())
    for drive, names in (("driveA", paths[:20]), ("driveB", paths[20:])):
        for camera in ("CameraRGB", "CameraSeg"):
            (folder / drive / camera).mkdir(parents=True)
            for name in names:
                shutil.copy(scenes / camera / name, folder / drive / camera)
        jobs.append((first, str(folder / drive), None, drive))
    for model, source, place, name in jobs:
        infer(
            model,
            source,
            place,
            str(folder / "outputs/predictions"),
            InferConfig(source_name=name),
            tracking_uri,
            options=pipeline_options(IN_MEMORY),
        )
    return folder / "outputs/predictions"


IN_MEMORY = ["--direct_running_mode=in_memory", "--direct_num_workers=1"]
"""Beam in the test's own process: no workers to start."""


@pytest.fixture
def job() -> Job:
    """Runs ``python -m module …`` as a user does."""

    def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    return run
