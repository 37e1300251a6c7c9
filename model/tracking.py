"""The only place of training that talks to MLflow: runs, metrics, the registered model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from model.export import export_openvino
from schemas.config import TrainConfig
from schemas.errors import UserError
from schemas.manifest import Manifest

EXPERIMENT = "lyft-unet"
_KEY_TAG = "train_key"
_REQUIREMENTS = ("mlflow", "keras", "tensorflow", "numpy")


def connect(tracking_uri: str) -> None:
    """Chooses the store and the experiment; a store of our own keeps artifacts beside itself.

    Raises:
        UserError: the store does not answer.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    mlflow.set_tracking_uri(tracking_uri)
    try:
        if folder := _local_folder(tracking_uri):
            folder.mkdir(parents=True, exist_ok=True)
        if mlflow.get_experiment_by_name(EXPERIMENT) is None:
            mlflow.create_experiment(EXPERIMENT, _artifact_folder(tracking_uri))
        mlflow.set_experiment(EXPERIMENT)
    except (MlflowException, OSError) as error:
        raise UserError(
            f"MLflow store {tracking_uri!r} cannot be used: {str(error).splitlines()[0]}"
        ) from error


def set_alias(uri: str, alias: str) -> None:
    """Points an alias at the version ``models:/<name>/<version>``."""
    name, _, number = uri.removeprefix("models:/").rpartition("/")
    mlflow.MlflowClient().set_registered_model_alias(name, alias, number)


def find_trained(name: str, key: str) -> str | None:
    """URI of a registered version that was trained with the same key, if there is one."""
    client = mlflow.MlflowClient()
    found = client.search_model_versions(f"name = '{name}' and tags.{_KEY_TAG} = '{key}'")
    for one in sorted(found, key=lambda one: int(one.version), reverse=True):
        uri = f"models:/{name}/{one.version}"
        try:
            mlflow.models.get_model_info(uri)
        except (MlflowException, OSError):
            continue
        return uri
    return None


@contextmanager
def training_run(config: TrainConfig, manifest: Manifest, dataset: Path) -> Iterator[str]:
    """An MLflow run that holds the parameters and the dataset; yields the run's id."""
    name = f"{manifest.name}-{manifest.fingerprint[:8]}-{config.filters}f-{config.epochs}e"
    with mlflow.start_run(run_name=name, log_system_metrics=False) as run:
        mlflow.log_params({**config.model_dump(), "dataset_fingerprint": manifest.fingerprint})
        # The digest is given, so that MLflow does not scan the data for one.
        with _without_advice():
            source = resolve_dataset_source(str(dataset))
        mlflow.log_input(
            MetaDataset(source=source, name=manifest.name, digest=manifest.fingerprint), "training"
        )
        yield run.info.run_id


def log_metrics(metrics: dict[str, float], step: int | None = None) -> None:
    """Logs finite metrics of the active run, by epoch where a step is given."""
    mlflow.log_metrics({k: v for k, v in metrics.items() if np.isfinite(v)}, step=step)


def log_file(path: Path, folder: str | None = None) -> None:
    """Logs one file as an artifact of the active run."""
    mlflow.log_artifact(str(path), folder)


def register(
    keras_file: Path, config: TrainConfig, manifest: Manifest, metrics: dict[str, float], key: str
) -> str:
    """Logs the model with signature, metadata and OpenVINO graph, registers it, sets its alias.

    Returns:
        ``models:/<name>/<version>``.
    """
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3), "image")]),
        outputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1), "class_id")]),
    )
    with _without_advice():
        info = mlflow.pyfunc.log_model(
            name="unet",
            python_model=str(Path(__file__).with_name("serving.py")),
            artifacts={
                "keras_file": str(keras_file),
                "openvino": str(export_openvino(keras_file, keras_file.parent / "openvino").parent),
            },
            signature=signature,
            pip_requirements=[f"{package}=={version(package)}" for package in _REQUIREMENTS],
            metadata=model_metadata(manifest),
            registered_model_name=config.model_name,
        )
    client = mlflow.MlflowClient()
    number = str(info.registered_model_version)
    for tag, value in {
        _KEY_TAG: key,
        "dataset_fingerprint": manifest.fingerprint,
        **{name: f"{value:.4f}" for name, value in metrics.items()},
    }.items():
        client.set_model_version_tag(config.model_name, number, tag, value)
    uri = f"models:/{config.model_name}/{number}"
    set_alias(uri, config.alias)
    return uri


def model_metadata(manifest: Manifest) -> dict[str, Any]:
    """What travels with the model: taxonomy, dataset fingerprint, size of its input."""
    return {
        "taxonomy": manifest.taxonomy.model_dump(mode="json"),
        "dataset_fingerprint": manifest.fingerprint,
        "dataset_name": manifest.name,
        "height": manifest.config.height,
        "width": manifest.config.width,
        "resize": manifest.config.resize,
    }


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
