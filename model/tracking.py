"""The only place of training that talks to MLflow: runs, metrics, the registered model."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import mlflow
import numpy as np
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException, RestException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from mlflow.utils.git_utils import get_git_commit
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT

from model.gate import Decision
from model.plan import Plan
from schemas.config import GateConfig, TrainConfig
from schemas.errors import UnavailableError, UserError

EXPERIMENT = "lyft-unet"
CHAMPION, CHALLENGER = "champion", "challenger"

_KEY_TAG, _BEFORE_TAG, _ROLLED_BACK_TAG = "train_key", "champion_before", "rolled_back"
_GATE_TAG, _CONFIG_TAG, _SWEEP_TAG = "gate", "train_config", "sweep_key"
_REQUIREMENTS = ("mlflow", "keras", "tensorflow", "numpy")
_LAST_OF_AN_EPOCH = "epoch_seconds"
SYSTEM_METRICS_SECONDS = 10

Result = TypeVar("Result")
Epochs = list[dict[str, float]]


def connect(tracking_uri: str) -> None:
    """Chooses the store and the experiment; a store of our own keeps artifacts beside itself.

    Raises:
        UserError: the store cannot be used.
        UnavailableError: the server does not answer.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # MLflow's own patience is four minutes for each call; ours is in `patiently`.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    mlflow.set_tracking_uri(tracking_uri)
    try:
        if folder := _local_folder(tracking_uri):
            folder.mkdir(parents=True, exist_ok=True)
        if mlflow.get_experiment_by_name(EXPERIMENT) is None:
            mlflow.create_experiment(EXPERIMENT, _artifact_folder(tracking_uri))
        mlflow.set_experiment(EXPERIMENT)
    except (MlflowException, OSError) as error:
        kind = UnavailableError if _is_outage(error) else UserError
        raise kind(f"MLflow store {tracking_uri!r} cannot be used: {_first_line(error)}") from error


def patiently(what: Callable[[], Result], seconds: float, say: Callable[[str], None]) -> Result:
    """Calls ``what`` until MLflow answers.

    Raises:
        UnavailableError: it has not answered for ``seconds``.
    """
    started = time.monotonic()
    while True:
        try:
            return what()
        except (MlflowException, OSError) as error:
            if not _is_outage(error):
                raise
            if time.monotonic() - started >= seconds:
                raise UnavailableError(
                    f"MLflow at {mlflow.get_tracking_uri()} does not answer: {_first_line(error)}"
                ) from error
            say(f"MLflow does not answer ({_first_line(error)}); trying again")
            time.sleep(min(5.0, seconds / 10))


class Run:
    """The MLflow run of one training; what it could not take yet is sent with the next epoch."""

    def __init__(self, run_id: str, say: Callable[[str], None]) -> None:
        self.id = run_id
        self._say = say
        self._client = mlflow.MlflowClient()
        # What the store has is asked of the store: a killed training may have sent more than
        # its checkpoint knows.
        history = self._client.get_metric_history(run_id, _LAST_OF_AN_EPOCH)
        self._sent = {metric.step for metric in history}

    def log_epochs(self, epochs: Epochs) -> None:
        """Sends the epochs, numbered from 1, that are not there yet; an outage loses none."""
        try:
            self.send(epochs)
        except (MlflowException, OSError) as error:
            if not _is_outage(error):
                raise
            self._say(
                f"MLflow does not answer ({_first_line(error)}); {self._missing(epochs)} epochs "
                "are kept in the checkpoint and sent when it is back"
            )

    def send(self, epochs: Epochs) -> None:
        """As ``log_epochs``, but an outage is an error."""
        now = int(time.time() * 1000)
        for step, metrics in enumerate(epochs, 1):
            if step not in self._sent:
                # One request, so that an epoch is there whole or not at all.
                entries = [
                    Metric(name, value, now, step)
                    for name, value in metrics.items()
                    if np.isfinite(value)
                ]
                self._client.log_batch(self.id, entries)
                self._sent.add(step)

    def _missing(self, epochs: Epochs) -> int:
        return len(epochs) - len(self._sent)


@contextmanager
def training_run(
    plan: Plan, run_id: str | None, parent: str | None, say: Callable[[str], None]
) -> Iterator[Run]:
    """An MLflow run with parameters, dataset and system metrics; an earlier one is continued.

    Args:
        run_id: of a training that was interrupted.
        parent: run of the sweep that this training is part of.
    """
    config, manifest = plan.config, plan.manifest
    mlflow.set_system_metrics_sampling_interval(SYSTEM_METRICS_SECONDS)
    mlflow.set_system_metrics_samples_before_logging(1)
    if run_id is not None and _run_exists(run_id):
        mlflow.start_run(run_id=run_id, log_system_metrics=True)
    else:
        name = f"{manifest.name}-{manifest.fingerprint[:8]}-{config.filters}f-{config.epochs}e"
        commit = get_git_commit(__file__)
        started = mlflow.start_run(
            run_name=name,
            parent_run_id=parent,
            nested=parent is not None,
            tags={MLFLOW_GIT_COMMIT: commit} if commit else None,
            log_system_metrics=True,
        )
        run_id = started.info.run_id
        mlflow.log_params({**config.model_dump(), "dataset_fingerprint": manifest.fingerprint})
        # The digest is given, so that MLflow does not scan the data for one.
        with _without_advice():
            source = resolve_dataset_source(str(plan.folder))
            dataset = MetaDataset(source=source, name=manifest.name, digest=manifest.fingerprint)
            mlflow.log_input(dataset, "training")
    status = "FAILED"
    try:
        yield Run(run_id, say)
        status = "FINISHED"
    finally:
        try:
            mlflow.end_run(status)
        except (MlflowException, OSError) as error:
            if not _is_outage(error):
                raise
            say(f"MLflow does not answer, so run {run_id} stays open: {_first_line(error)}")


def start_sweep(plan: Plan, keys: list[str]) -> str:
    """The parent run of a sweep over these trainings; a sweep that was cut short has its own."""
    client = mlflow.MlflowClient()
    experiment = mlflow.get_experiment_by_name(EXPERIMENT).experiment_id
    key = hashlib.sha256(" ".join(keys).encode()).hexdigest()
    found = client.search_runs([experiment], f"tags.{_SWEEP_TAG} = '{key}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    name = f"sweep-{plan.manifest.name}-{plan.manifest.fingerprint[:8]}-{len(keys)}"
    run = client.create_run(experiment, tags={_SWEEP_TAG: key}, run_name=name)
    return str(run.info.run_id)


def end_sweep(run_id: str, table: str, score: float) -> None:
    """Logs the table of a sweep's trainings and its best score."""
    client = mlflow.MlflowClient()
    client.log_text(run_id, table, "sweep.md")
    client.log_metric(run_id, "best_score", score)
    client.set_terminated(run_id)


def best_of(uri: str, metric: str) -> float:
    """The highest value, over the epochs, of a metric of the run that made a version."""
    client = mlflow.MlflowClient()
    run_id = client.get_model_version(*_name_and_version(uri)).run_id
    return float(max(one.value for one in client.get_metric_history(run_id, metric)))


def log_metrics(metrics: dict[str, float]) -> None:
    """Logs finite metrics of the active run."""
    mlflow.log_metrics({k: v for k, v in metrics.items() if np.isfinite(v)})


def log_file(path: Path, folder: str | None = None) -> None:
    """Logs one file as an artifact of the active run."""
    mlflow.log_artifact(str(path), folder)


def register(files: dict[str, Path], plan: Plan, metrics: dict[str, float], card: str) -> str:
    """Logs the model with signature, example and metadata, and registers it.

    Args:
        files: ``keras_file``, and ``openvino``, the folder of its graph.

    Returns:
        ``models:/<name>/<version>``.
    """
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3), "image")]),
        outputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1), "class_id")]),
    )
    size = (1, plan.manifest.config.height, plan.manifest.config.width, 3)
    with _without_advice():
        info = mlflow.pyfunc.log_model(
            name="unet",
            python_model=str(Path(__file__).with_name("serving.py")),
            artifacts={name: str(path) for name, path in files.items()},
            model_config=plan.geometry.model_dump(),
            signature=signature,
            input_example={"image": np.zeros(size, np.uint8)},
            pip_requirements=[f"{package}=={version(package)}" for package in _REQUIREMENTS],
            metadata=plan.model_metadata(),
        )
        registered = mlflow.register_model(
            info.model_uri,
            plan.config.model_name,
            # At creation, so that no version is without the key that finds it again.
            tags={
                _KEY_TAG: plan.key,
                _CONFIG_TAG: plan.config.model_dump_json(),
                "dataset_fingerprint": plan.manifest.fingerprint,
                **{name: f"{value:.4f}" for name, value in metrics.items()},
            },
        )
    mlflow.MlflowClient().update_model_version(registered.name, registered.version, card)
    return f"models:/{registered.name}/{registered.version}"


def find_trained(name: str, key: str, run_id: str | None = None) -> str | None:
    """URI of a registered version that was trained with the same key, by that run if named."""
    client = mlflow.MlflowClient()
    found = client.search_model_versions(f"name = '{name}' and tags.{_KEY_TAG} = '{key}'")
    for one in sorted(found, key=lambda one: int(one.version), reverse=True):
        if run_id not in (None, one.run_id):
            continue
        uri = f"models:/{name}/{one.version}"
        try:
            mlflow.models.get_model_info(uri)
        except (MlflowException, OSError):
            continue
        return uri
    return None


def set_alias(uri: str, alias: str) -> None:
    """Points an alias at the version ``models:/<name>/<version>``."""
    name, number = _name_and_version(uri)
    mlflow.MlflowClient().set_registered_model_alias(name, alias, number)


def champion(name: str) -> str | None:
    """URI of the champion's version, if there is one."""
    try:
        found = mlflow.MlflowClient().get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return f"models:/{name}/{found.version}"


def log_decision(
    uri: str, champion_uri: str | None, decision: Decision, config: GateConfig
) -> None:
    """Writes the gate's decision to version and run, and moves the champion's alias if it says so.

    ``refused_before`` finds it again.
    """
    client = mlflow.MlflowClient()
    name, number = _name_and_version(uri)
    run_id = client.get_model_version(name, number).run_id
    client.log_dict(run_id, decision.model_dump(), "gate.json")
    client.log_text(run_id, decision.to_markdown(uri, champion_uri), "gate.md")
    if decision.promoted:
        before = _name_and_version(champion_uri)[1] if champion_uri else ""
        client.set_model_version_tag(name, number, _BEFORE_TAG, before)
        set_alias(uri, CHAMPION)
    seen = {
        "against": champion_uri,
        "gate": config.sha256(),
        "promoted": decision.promoted,
        "reason": decision.reason,
    }
    client.set_model_version_tag(name, number, _GATE_TAG, json.dumps(seen))


def refused_before(uri: str, champion_uri: str | None, config: GateConfig) -> str | None:
    """Why the gate did not promote a version over this champion before, if it decided so."""
    name, number = _name_and_version(uri)
    tags = mlflow.MlflowClient().get_model_version(name, number).tags
    if _ROLLED_BACK_TAG in tags:
        return "It was rolled back."
    seen = json.loads(tags.get(_GATE_TAG, "{}"))
    same = (seen.get("against"), seen.get("gate")) == (champion_uri, config.sha256())
    return str(seen["reason"]) if same and not seen["promoted"] else None


def rollback(name: str) -> str:
    """Gives the champion's alias back to the champion before; returns its URI.

    The version that loses it is never promoted by the gate again.

    Raises:
        UserError: there is no champion, or none before it.
    """
    client = mlflow.MlflowClient()
    current = champion(name)
    if current is None:
        raise UserError(f"model {name!r} has no champion to roll back")
    number = _name_and_version(current)[1]
    before = client.get_model_version(name, number).tags.get(_BEFORE_TAG)
    if not before:
        raise UserError(f"{current} is the first champion of {name!r}: there is none before it")
    set_alias(f"models:/{name}/{before}", CHAMPION)
    client.set_model_version_tag(name, number, _ROLLED_BACK_TAG, "true")
    return f"models:/{name}/{before}"


def metadata(uri: str) -> dict[str, Any]:
    """What travels with a model: see ``Plan.model_metadata``.

    Raises:
        UserError: there is no such model, or it was not logged here.
    """
    try:
        found = mlflow.models.get_model_info(uri).metadata
    except (MlflowException, OSError) as error:
        raise UserError(f"model {uri!r} cannot be found: {_first_line(error)}") from error
    if not found or "geometry" not in found:
        raise UserError(f"model {uri!r} was not logged by `python -m model.train`")
    return dict(found)


def train_config(uri: str) -> dict[str, Any]:
    """The TrainConfig that a registered version was trained with, as plain data."""
    metadata(uri)
    name, number = _name_and_version(uri)
    tags = mlflow.MlflowClient().get_model_version(name, number).tags
    return TrainConfig.model_validate_json(tags[_CONFIG_TAG]).model_dump()


def keras_file(uri: str) -> Path:
    """Path of a model's ``.keras`` file on this machine."""
    folder = mlflow.artifacts.download_artifacts(uri)
    return next(Path(folder, "artifacts").glob("*.keras"))


def _name_and_version(uri: str) -> tuple[str, str]:
    name, _, number = uri.removeprefix("models:/").rpartition("/")
    return name, number


def _run_exists(run_id: str) -> bool:
    try:
        return bool(mlflow.MlflowClient().get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if _is_outage(error):
            raise
        return False


def _is_outage(error: Exception) -> bool:
    """Whether a server did not answer, as opposed to one that refused."""
    if isinstance(error, RestException):
        return bool(error.get_http_status_code() >= 500)
    return isinstance(error, ConnectionError) or "API request to" in str(error)


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= 160 else f"{line[:157]}..."


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silences MLflow's advice on input examples and on the two names of a dataset's source."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _artifact_folder(tracking_uri: str) -> str | None:
    folder = _local_folder(tracking_uri)
    return (folder / "artifacts").as_uri() if folder else None


def _local_folder(tracking_uri: str) -> Path | None:
    scheme, _, path = tracking_uri.partition(":///")
    return Path(path).absolute().parent if scheme == "sqlite" else None
