"""Logs trainings and sweeps to MLflow: connection, runs, parameters, metrics, artifacts."""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import mlflow
import numpy as np
from alembic.util import CommandError
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.utils.git_utils import get_git_commit
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT
from sqlalchemy.exc import SQLAlchemyError

from model.backend import is_jax
from model.plan import Plan
from runtime.command_line import Log
from runtime.errors import UnavailableError, first_line, redact_credentials
from runtime.locks import lock
from runtime.mlflow_store import is_outage, prepare_store, sqlite_file, store_error

EXPERIMENT = "lyft-unet"

BACKEND_TAG = "keras_backend"
"""Tag of a run: what Keras ran on, where the parameter may say ``auto``."""

_SWEEP_TAG = "sweep_key"
_EPOCH_MARKER = "epoch_seconds"
SYSTEM_METRICS_SECONDS = 10

Result = TypeVar("Result")
Epochs = list[dict[str, float]]


def connect(tracking_uri: str) -> None:
    """Selects the store and the experiment; a SQLite store keeps artifacts beside its file.

    Raises:
        UserError: the store cannot be used.
        UnavailableError: the server does not answer.
    """
    prepare_store(tracking_uri)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    mlflow.set_tracking_uri(tracking_uri)
    try:
        if file := sqlite_file(tracking_uri):
            file.parent.mkdir(parents=True, exist_ok=True)
            # Two processes that create the tables at the same time fail, or damage the database.
            with lock(file.parent / "mlflow.lock", wait=True):
                _set_experiment((file.parent / "artifacts").as_uri())
        else:
            _set_experiment(None)
    except (MlflowException, SQLAlchemyError, CommandError, ImportError, OSError) as error:
        raise store_error(tracking_uri, error) from error


def retry_during_outage(call: Callable[[], Result], timeout_s: float, log: Log) -> Result:
    """The result of ``call``, which is repeated while MLflow does not answer.

    Raises:
        UnavailableError: MLflow has not answered for ``timeout_s`` seconds.
    """
    started = time.monotonic()
    while True:
        try:
            return call()
        except (MlflowException, OSError, UnavailableError) as error:
            if not is_outage(error):
                raise
            if time.monotonic() - started >= timeout_s:
                raise UnavailableError(
                    f"MLflow at {mlflow.get_tracking_uri()} does not answer: {first_line(error)}"
                ) from error
            reason = redact_credentials(first_line(error))
            log(f"MLflow does not answer ({reason}); trying again")
            time.sleep(min(5.0, timeout_s / 10))


class Run:
    """The MLflow run of one training; epochs that could not be sent are sent with the next one."""

    def __init__(self, run_id: str, log: Log) -> None:
        self.id = run_id
        self._log = log
        self._client = mlflow.MlflowClient()
        # From the store: a killed training may have sent more epochs than its checkpoint has.
        history = self._client.get_metric_history(run_id, _EPOCH_MARKER)
        self._sent = {metric.step for metric in history}
        # In ms, by epoch. A server that dies may have stored an epoch without answering; sent again
        # with the same timestamp, its points are the same.
        self._timestamps: dict[int, int] = {}

    def log_epochs(self, epochs: Epochs) -> None:
        """Sends the epochs, numbered from 1, that the store lacks; an outage loses none."""
        try:
            self.send(epochs)
        except (MlflowException, OSError) as error:
            if not is_outage(error):
                raise
            self._log(
                f"MLflow does not answer ({first_line(error)}); {len(epochs) - len(self._sent)} "
                "epochs are kept in the checkpoint and sent when it is back"
            )

    def send(self, epochs: Epochs) -> None:
        """Like ``log_epochs``, but raises during an outage."""
        for step, metrics in enumerate(epochs, 1):
            if step not in self._sent:
                timestamp = self._timestamps.setdefault(step, int(time.time() * 1000))
                # One request, so that an epoch is logged whole or not at all.
                entries = [
                    Metric(name, value, timestamp, step)
                    for name, value in metrics.items()
                    if np.isfinite(value)
                ]
                self._client.log_batch(self.id, entries)
                self._sent.add(step)


@contextmanager
def training_run(
    plan: Plan,
    run_id: str | None,
    parent: str | None,
    log: Log,
    save_run_id: Callable[[str], None],
) -> Iterator[Run]:
    """Starts an MLflow run with parameters, dataset and system metrics, or continues one.

    Args:
        run_id: run of an interrupted training, to be continued if it still exists.
        parent: run of the sweep that this training is part of.
        save_run_id: called before anything else is sent, so that an interrupted training can always
            continue in its run.
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
    status = "FAILED"
    try:
        save_run_id(run_id)
        _log_inputs(plan, run_id)
        yield Run(run_id, log)
        status = "FINISHED"
    finally:
        try:
            mlflow.end_run(status)
        except (MlflowException, OSError) as error:
            if not is_outage(error):
                raise
            log(f"MLflow does not answer, so run {run_id} stays open: {first_line(error)}")


def _log_inputs(plan: Plan, run_id: str) -> None:
    """Logs parameters, Keras's backend and dataset to the active run; idempotent."""
    manifest = plan.manifest
    mlflow.set_tag(BACKEND_TAG, "jax" if is_jax() else "tensorflow")
    params = {**plan.config.model_dump(), "dataset_fingerprint": manifest.fingerprint}
    # Parameters cannot be changed, and a run that is continued may name the same file by another
    # path: its bytes are in the training's key.
    logged = mlflow.MlflowClient().get_run(run_id).data.params
    mlflow.log_params({name: value for name, value in params.items() if name not in logged})
    # The digest is given, so that MLflow does not scan the data for one.
    with ignore_user_warnings():
        source = resolve_dataset_source(plan.folder)
        dataset = MetaDataset(source=source, name=manifest.name, digest=manifest.fingerprint)
        mlflow.log_input(dataset, "training")


def start_sweep(plan: Plan, keys: list[str]) -> str:
    """Id of the parent run of a sweep over these trainings; an interrupted sweep keeps its run."""
    client = mlflow.MlflowClient()
    experiment = mlflow.get_experiment_by_name(EXPERIMENT).experiment_id
    key = hashlib.sha256(" ".join(keys).encode()).hexdigest()
    found = client.search_runs([experiment], f"tags.{_SWEEP_TAG} = '{key}'", max_results=1)
    if found:
        run_id = str(found[0].info.run_id)
        client.update_run(run_id, "RUNNING")
        return run_id
    name = f"sweep-{plan.manifest.name}-{plan.manifest.fingerprint[:8]}-{len(keys)}"
    run = client.create_run(experiment, tags={_SWEEP_TAG: key}, run_name=name)
    return str(run.info.run_id)


def end_sweep(run_id: str, table: str, score: float) -> None:
    """Logs the table of a sweep's trainings and its best score."""
    client = mlflow.MlflowClient()
    client.log_text(run_id, table, "sweep.md")
    client.log_metric(run_id, "best_score", score)
    client.set_terminated(run_id)


def fail_sweep(run_id: str) -> None:
    """Ends the parent run of a sweep that cannot go on, if MLflow answers."""
    with suppress(MlflowException, OSError):
        mlflow.MlflowClient().set_terminated(run_id, "FAILED")


def log_metrics(metrics: dict[str, float]) -> None:
    """Logs the metrics that are finite to the active run."""
    mlflow.log_metrics({name: value for name, value in metrics.items() if np.isfinite(value)})


def log_file(path: Path) -> None:
    """Logs one file as an artifact of the active run."""
    mlflow.log_artifact(str(path))


def _run_exists(run_id: str) -> bool:
    try:
        return bool(mlflow.MlflowClient().get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if is_outage(error):
            raise
        return False


@contextmanager
def ignore_user_warnings() -> Iterator[None]:
    """Silences MLflow's warnings about input examples and ambiguous dataset sources."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _set_experiment(artifact_location: str | None) -> None:
    """Creates the experiment if it is missing; a concurrent training may create it first."""
    if mlflow.get_experiment_by_name(EXPERIMENT) is None:
        try:
            mlflow.create_experiment(EXPERIMENT, artifact_location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    mlflow.set_experiment(EXPERIMENT)
