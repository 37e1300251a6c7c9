"""Shared inputs: synthetic scenes drawn once, the real pairs if present, one small dataset."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import store
from hypothesis import settings
from servers import PATIENCE_S

from flows.scenes import write_scenes
from schemas.config import GateConfig, InferConfig, IngestConfig, TrainConfig

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared/data/lyft"

SMALL = IngestConfig(name="small", height=32, width=48, block_length=1)
"""Small images, split one by one: 40 of them give 32, 4 and 4."""

ANY_MODEL = GateConfig(floor=0)
"""Lets the first version become champion, however poor it is."""

RETRIED = re.compile(r"Retry \d+/\d+ will start")
"""What Prefect logs when it tries a task again; its client has other words for its own requests."""

Job = Callable[..., subprocess.CompletedProcess[str]]


def pytest_configure() -> None:
    """Sets variables before the modules that read them are imported, and allows slow machines."""
    settings.register_profile("pipeline", deadline=None, database=None)
    settings.load_profile("pipeline")
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = str(PATIENCE_S)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"


@pytest.fixture(scope="session", autouse=True)
def _homes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Temporary home folders, for Prefect and in general, that every test process inherits."""
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
    return Path(run(str(scenes), str(output), SMALL, pipeline_options(IN_MEMORY)))


@pytest.fixture
def copy(scenes: Path, tmp_path: Path) -> Path:
    """A copy of the scenes that a test may change."""
    return Path(shutil.copytree(scenes, tmp_path / "raw"))


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network as a file with its graph beside it, with which a job starts fast."""
    import keras

    from model.export import export_openvino
    from model.unet import unet

    keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp("model") / "plain.keras"
    unet(13, filters=2).save(path)
    export_openvino(path, path.parent / "openvino")
    return path


@dataclass(frozen=True)
class Trained:
    """A registered model of the small dataset."""

    model: str
    tracking_uri: str
    config: TrainConfig

    @property
    def version(self) -> str:
        """The version as written in partitions."""
        return f"v{self.model.rpartition('/')[2]}"


@pytest.fixture(scope="session")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A network of 4 filters after 2 epochs: enough to be a model, not to be a good one."""
    from model import tracking
    from model.train import run

    # The training ends before the first sample of the default interval would be taken.
    tracking.SYSTEM_METRICS_SECONDS = 1
    folder = tmp_path_factory.mktemp("mlflow")
    # In float32 on any machine: in 16 bits, an epoch's metrics are not those of the saved network.
    config = TrainConfig(
        model_name="small-unet", epochs=2, filters=4, batch_size=8, precision="float32"
    )
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
"""Runs Beam in the test's own process, without starting workers."""


def python(
    *arguments: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs this Python to completion, whatever its exit code."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def job() -> Job:
    """Runs ``python -m module …`` as a user does."""

    def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return python("-m", module, *arguments)

    return run


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[store.Store]:
    """A real S3 server with a bucket, which this process and its children are set up to use."""
    with store.store(tmp_path_factory.mktemp("store")) as started:
        yield started


def on_small_disk(folder: Path, then: str = '"$@"') -> list[str]:
    """Prefix for a command that runs it with a file system of a few pages mounted at ``folder``.

    Args:
        then: shell command to run after mounting; only it and its children see the mount.
    """
    folder.mkdir()
    mount = f"mount -t tmpfs -o size=64k tmpfs {folder}"
    enter = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*enter, mount], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets no process mount a file system of its own")
    return [*enter, f"{mount} && {then}", "sh"]


def started(log: Path, module: str, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
    """Starts ``python -m module …`` in its own process group; its output is appended to ``log``."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env={**os.environ, **variables},
        )


def killed_at_random_instants(
    start: Callable[[], subprocess.Popen[bytes]],
    has_published: Callable[[], bool],
    kills: int,
    seconds: float,
) -> Iterator[bool]:
    """Starts jobs and kills their process groups until ``kills`` died before they had published.

    Args:
        seconds: how long the job takes undisturbed.

    Yields:
        After each job, whether it had published before it was killed.
    """
    instants = random.Random(0)
    for _ in range(6 * kills):
        process = start()
        instant = instants.uniform(0.3, 1) * seconds
        try:
            process.wait(instant)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        published = has_published()
        yield published
        # The machine's speed varies: adapts the next instants, so that they stay close to the end.
        seconds = instant if published else 1.1 * seconds
        kills -= not published
        if not kills:
            return
    raise AssertionError(f"{kills} more jobs should have been killed before they had published")
