"""Resolves a model: an MLflow URI or a plain ``.keras`` file to its files and metadata."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from images.resize import resize_image
from runtime import storage
from runtime.child_processes import run_module
from runtime.errors import UserError, first_line
from runtime.imports import import_quickly
from runtime.mlflow_registry import NotReadError, registry
from runtime.mlflow_store import (
    is_missing,
    prepare_store,
    registered_version,
    sqlite_file,
    store_error,
)
from schemas.classes import Taxonomy, UInt8Array, load_taxonomy
from schemas.config import InferConfig, Resize
from schemas.drift import Profile
from schemas.geometry import Geometry
from schemas.layout import GRAPH_SOURCE, OPENVINO_GRAPH, VALIDATION, safe_name


@dataclass(frozen=True)
class ResolvedModel:
    """A model on this machine.

    Attributes:
        uri: URI of the model's version or run, or the path of a plain file.
        name, version: as in the partition; the version is ``v3``, ``run-`` and the start of the
            run's id, or ``file-`` and the start of a plain file's hash.
        keras_file: path or URI of the ``.keras`` file; sha256: of its bytes.
        height, width: size in pixels that images are resized to.
        resize: how images are resized.
        windows: whether images keep their own size, and are predicted in sliding windows.
        geometry: sizes that the network takes; None for a plain file: the engine tries several.
        class_table: the model's class id for each class id of the training dataset's taxonomy; they
            differ if the model separates a target from the rest. None for a plain file.
        dataset_mapping_sha256: of the taxonomy of the training dataset.
        dataset_taxonomy: that taxonomy, if the model separates a target from the rest; None also
            for versions that were logged before it was kept.
        graph: path of the OpenVINO graph that was exported from the file, if there is one.
        run_id, fingerprint: of the training run and of the training dataset, if known.
        validation: profile of its predictions for its validation split, if recorded.
    """

    uri: str
    name: str
    version: str
    keras_file: str
    sha256: str
    taxonomy: Taxonomy
    height: int
    width: int
    resize: Resize
    geometry: Geometry | None = None
    class_table: tuple[int, ...] | None = None
    dataset_mapping_sha256: str | None = None
    dataset_taxonomy: Taxonomy | None = None
    run_id: str | None = None
    fingerprint: str | None = None
    graph: str | None = None
    windows: bool = False
    validation: Profile | None = None

    def fit(self, image: UInt8Array) -> UInt8Array:
        """An image (h, w, 3) at the size at which it is predicted."""
        if self.windows:
            return image
        return resize_image(image, self.height, self.width, self.resize)

    @property
    def mask_taxonomy(self) -> Taxonomy:
        """The taxonomy by which raw masks are read; ``own_ids`` turns its ids into the model's."""
        return self.dataset_taxonomy or self.taxonomy

    def own_ids(self, mask: UInt8Array) -> UInt8Array:
        """The model's class ids for those of ``mask_taxonomy``, (h, w); void stays 255."""
        if self.dataset_taxonomy is None or self.class_table is None:
            return mask
        return np.array(self.class_table, np.uint8)[mask]


def resolve_model(
    uri: str, config: InferConfig, tracking_uri: str, scratch: str | None = None
) -> ResolvedModel:
    """Finds a model by ``models:/name@alias``, ``models:/name/3``, ``runs:/…`` or a file's path.

    Args:
        scratch: folder for the files of a model that an MLflow server keeps; it must exist as long
            as the model is needed.

    Raises:
        UserError: there is no such model, ``model.train`` did not log it, or MLflow's store cannot
            be used.
        UnavailableError: MLflow does not answer.
    """
    if uri.startswith(("models:/", "runs:/")):
        return _from_mlflow(uri, config, tracking_uri, scratch)
    path = Path(storage.absolute(uri))
    if not path.is_file():
        raise UserError(
            f"model {uri!r}: expected models:/<name>@<alias>, models:/<name>/<version>, "
            "runs:/<id>/unet or the path of a .keras file, and found no such file"
        )
    _check_keras_file(path)
    sha256 = storage.file_sha256(path)
    return ResolvedModel(
        uri=str(path),
        name=safe_name(path.stem),
        version=f"file-{sha256[:12]}",
        keras_file=str(path),
        sha256=sha256,
        taxonomy=load_taxonomy(config.taxonomy),
        height=config.height or 96,
        width=config.width or 128,
        resize="nearest",
        graph=_graph_of(sha256, path.parent / "openvino"),
        windows=config.windows == "on",
    )


def _from_mlflow(
    uri: str, config: InferConfig, tracking_uri: str, scratch: str | None
) -> ResolvedModel:
    # MLflow would create an empty store.
    if (file := sqlite_file(tracking_uri)) and not file.exists():
        raise UserError(f"MLflow store {tracking_uri!r}: there is no such file; train first")
    logged = _from_local_registry(uri, tracking_uri) or _from_mlflow_api(uri, tracking_uri, scratch)
    metadata = logged.metadata
    masks = metadata.get("dataset_taxonomy")
    files = sorted(logged.folder.glob("artifacts/*.keras"))
    if not files or "geometry" not in metadata:
        raise UserError(
            f"model {uri!r} was not logged by `python -m model.train`; name a version or a run "
            "that was"
        )
    _check_keras_file(files[0])
    sha256 = storage.file_sha256(files[0])
    return ResolvedModel(
        uri=logged.uri,
        name=safe_name(logged.name),
        version=logged.version or f"run-{logged.run_id[:8]}",
        keras_file=str(files[0]),
        sha256=sha256,
        taxonomy=Taxonomy.model_validate(metadata["taxonomy"]),
        height=config.height or metadata["height"],
        width=config.width or metadata["width"],
        resize=metadata["resize"],
        geometry=Geometry.model_validate(metadata["geometry"]),
        class_table=tuple(metadata["class_table"]),
        dataset_mapping_sha256=metadata["dataset_mapping_sha256"],
        dataset_taxonomy=Taxonomy.model_validate(masks) if masks else None,
        run_id=logged.run_id,
        fingerprint=metadata["dataset_fingerprint"],
        graph=_graph_of(sha256, logged.folder / "artifacts/openvino"),
        windows=config.windows == "on",
        validation=Profile.model_validate(metadata[VALIDATION]) if VALIDATION in metadata else None,
    )


class _LoggedModel(NamedTuple):
    """A model in MLflow; the version is e.g. ``v3``, or empty for a run's model."""

    uri: str
    name: str
    version: str
    folder: Path
    run_id: str
    metadata: dict[str, Any]


def _from_local_registry(uri: str, tracking_uri: str) -> _LoggedModel | None:
    """A registered version whose files are on this machine; None to ask MLflow instead."""
    if not uri.startswith("models:/"):
        return None
    try:
        with registry(tracking_uri) as opened:
            version = opened.version_by_uri(uri)
            description = version.description
    except NotReadError:
        return None
    return _LoggedModel(
        uri=version.uri,
        name=version.name,
        version=f"v{version.number}",
        folder=version.folder,
        run_id=description.get("run_id", ""),
        metadata=description.get("metadata") or {},
    )


def _from_mlflow_api(uri: str, tracking_uri: str, scratch: str | None) -> _LoggedModel:
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import_quickly("mlflow")
    import mlflow
    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    prepare_store(tracking_uri)
    mlflow.set_tracking_uri(tracking_uri)
    try:
        # Without dst_path, MLflow never removes its downloads from the system's temporary folder.
        # The files of an SQLite store need no download; a cluster's workers may see them in place.
        target = None if tracking_uri.startswith("sqlite:") else scratch
        name, version = _registered(mlflow.MlflowClient(), uri)
        # By version, since an alias may move at any moment.
        model_uri = f"models:/{name}/{version.removeprefix('v')}" if version else uri
        folder = Path(mlflow.artifacts.download_artifacts(model_uri, dst_path=target))
        info = mlflow.models.Model.load(folder)
    except (MlflowException, SQLAlchemyError, CommandError, ImportError, OSError) as error:
        if not is_missing(error):
            raise store_error(tracking_uri, error) from error
        raise UserError(
            f"model {uri!r} cannot be found in {tracking_uri}: {first_line(error)}"
        ) from error
    return _LoggedModel(model_uri, name, version, folder, info.run_id, info.metadata or {})


def training_datasets(tracking_uri: str) -> dict[str, str]:
    """Fingerprints of the datasets that models were trained on, each with a model's URI.

    Raises:
        UserError: MLflow's store cannot be used.
        UnavailableError: MLflow does not answer.
    """
    if (file := sqlite_file(tracking_uri)) and not file.exists():
        return {}
    import_quickly("mlflow")
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    prepare_store(tracking_uri)
    try:
        versions = mlflow.MlflowClient(tracking_uri).search_model_versions()
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise store_error(tracking_uri, error) from error
    return {
        version.tags["dataset_fingerprint"]: f"models:/{version.name}/{version.version}"
        for version in versions
        if "dataset_fingerprint" in version.tags
    }


def with_graph(model: ResolvedModel, folder: Path) -> ResolvedModel:
    """The model with its OpenVINO graph, which is exported to ``folder`` if there is none.

    A separate process exports it, so that this one need not load TensorFlow.

    Raises:
        UserError: the model cannot be exported.
    """
    if model.graph:
        return model
    run_module("model.export", f"--model={model.keras_file}", f"--output={folder}")
    return dataclasses.replace(model, graph=str(folder / OPENVINO_GRAPH))


def copy_model(model: ResolvedModel, folder: str) -> ResolvedModel:
    """Copies the model's files to a folder, local or on a store, and returns the copy."""
    if not storage.is_remote(folder):
        os.makedirs(folder, exist_ok=True)
    keras_file, graph = storage.join(folder, "unet.keras"), None
    storage.copy(model.keras_file, keras_file)
    if model.graph:
        graph = storage.join(folder, OPENVINO_GRAPH)
        storage.copy(model.graph, graph)
        storage.copy(_weights(model.graph), _weights(graph))
    return dataclasses.replace(model, keras_file=keras_file, graph=graph)


@contextmanager
def local_model(model: ResolvedModel) -> Iterator[ResolvedModel]:
    """The model with its files on this machine; it must be loaded before the block ends."""
    if not storage.is_remote(model.keras_file):
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="lyft-model-") as folder:
        yield copy_model(model, folder)


def _weights(graph: str) -> str:
    """Path of the weights that OpenVINO reads beside a graph."""
    return f"{graph.removesuffix('.xml')}.bin"


def _graph_of(sha256: str, folder: Path) -> str | None:
    """The graph in ``folder``, if it was exported from the file with this hash."""
    path = folder / OPENVINO_GRAPH
    try:
        fits = f'<{GRAPH_SOURCE} value="{sha256}"' in path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return str(path) if fits else None


def _registered(client: Any, uri: str) -> tuple[str, str]:
    """Name and version (e.g. ``v3``) of the model at a URI; a run's model has no version."""
    if uri.startswith("runs:/"):
        return "run", ""
    model_version = registered_version(client, uri)
    return model_version.name, f"v{model_version.version}"


def _check_keras_file(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"model file {str(path)!r}: expected a .keras archive, found other bytes; save the "
            "network with Keras 3, under a name that ends in .keras"
        )
