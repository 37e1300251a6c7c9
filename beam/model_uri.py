"""Where a model lies and what travels with it: MLflow's URIs and plain ``.keras`` files."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beam.storage import file_sha256
from schemas.classes import Taxonomy, load_taxonomy
from schemas.config import InferConfig, Resize
from schemas.errors import UserError
from schemas.geometry import Geometry
from schemas.layout import GRAPH_SOURCE, OPENVINO_GRAPH, safe_name


@dataclass(frozen=True)
class ResolvedModel:
    """A model on this machine.

    Attributes:
        name, version: as in the partition; ``v3``, or the start of its hash for a plain file.
        keras_file: path of the ``.keras`` file.
        height, width: size in pixels that images are resized to.
        resize: how.
        geometry: sizes that the network takes; None for a plain file, where it is found by trying.
        class_table: class id for each value of the masks of a dataset like that of the training,
            where the model tells a target from the rest.
        graph: path of the OpenVINO graph that was exported from the file, where there is one.
        run_id, fingerprint: training run and training dataset, where known.
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
    dataset_taxonomy_sha256: str | None = None
    run_id: str | None = None
    fingerprint: str | None = None
    graph: str | None = None


def resolve_model(uri: str, config: InferConfig, tracking_uri: str) -> ResolvedModel:
    """Finds a model by ``models:/name@alias``, ``models:/name/3``, ``runs:/…`` or a file's path.

    Raises:
        UserError: there is no such model, or it is none of ours.
    """
    if uri.startswith(("models:/", "runs:/")):
        return _from_mlflow(uri, config, tracking_uri)
    path = Path(uri).absolute()
    if not path.is_file():
        raise UserError(
            f"model {uri!r}: expected models:/<name>@<alias>, models:/<name>/<version>, "
            "runs:/<id>/unet or the path of a .keras file, and found no such file"
        )
    _check_keras_file(path)
    sha256 = file_sha256(path)
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
    )


def _from_mlflow(uri: str, config: InferConfig, tracking_uri: str) -> ResolvedModel:
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    _require_store(tracking_uri)
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(tracking_uri)
    try:
        info = mlflow.models.get_model_info(uri)
        folder = Path(mlflow.artifacts.download_artifacts(uri))
        name, version = _registered(mlflow.MlflowClient(), uri)
    except (MlflowException, OSError) as error:
        raise UserError(
            f"model {uri!r} cannot be found in {tracking_uri}: {str(error).splitlines()[0]}"
        ) from error
    metadata: dict[str, Any] = info.metadata or {}
    files = sorted(folder.glob("artifacts/*.keras"))
    if not files or "geometry" not in metadata:
        raise UserError(f"model {uri!r} was not logged by `python -m model.train`")
    _check_keras_file(files[0])
    sha256 = file_sha256(files[0])
    height, width = (config.height, config.width) if config.height else _size(metadata)
    return ResolvedModel(
        uri=f"models:/{name}/{version.removeprefix('v')}" if version else uri,
        name=safe_name(name),
        version=version or f"run-{info.run_id[:8]}",
        keras_file=str(files[0]),
        sha256=sha256,
        taxonomy=Taxonomy.model_validate(metadata["taxonomy"]),
        height=height,
        width=width,
        resize=metadata["resize"],
        geometry=Geometry.model_validate(metadata["geometry"]),
        class_table=tuple(metadata["class_table"]),
        dataset_taxonomy_sha256=metadata["dataset_taxonomy_sha256"],
        run_id=info.run_id,
        fingerprint=metadata["dataset_fingerprint"],
        graph=_graph_of(sha256, folder / "artifacts/openvino"),
    )


def _size(metadata: dict[str, Any]) -> tuple[int, int]:
    """Height and width that the model was trained at."""
    if not metadata["height"]:
        raise UserError(
            "the model was trained on images of many sizes; name the --height and --width "
            "that it shall predict at"
        )
    return metadata["height"], metadata["width"]


def with_graph(model: ResolvedModel, folder: Path) -> ResolvedModel:
    """The model with an OpenVINO graph: the one it has, or one that is exported into ``folder``.

    A process of its own exports, for it needs TensorFlow, which then is needed nowhere else.

    Raises:
        UserError: the model cannot be exported.
    """
    if model.graph:
        return model
    arguments = [f"--model={model.keras_file}", f"--output={folder}"]
    done = subprocess.run(
        [sys.executable, "-m", "model.export", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(lines[-1].removeprefix("error: "))
    return dataclasses.replace(model, graph=str(folder / OPENVINO_GRAPH))


def _graph_of(sha256: str, folder: Path) -> str | None:
    """The graph in ``folder``, if it was made of the file with this hash."""
    path = folder / OPENVINO_GRAPH
    try:
        fits = f'<{GRAPH_SOURCE} value="{sha256}"' in path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return str(path) if fits else None


def _registered(client: Any, uri: str) -> tuple[str, str]:
    """Name and version (``v3``) of a registered model's URI; the version is empty for a run's."""
    kind, _, rest = uri.partition(":/")
    if kind == "runs":
        return "run", ""
    name, _, alias = rest.partition("@")
    if alias:
        return name, f"v{client.get_model_version_by_alias(name, alias).version}"
    name, _, version = rest.rpartition("/")
    return name, f"v{client.get_model_version(name, version).version}"


def _require_store(tracking_uri: str) -> None:
    """A look-up must not make an empty store where there was none."""
    scheme, _, path = tracking_uri.partition(":///")
    if scheme == "sqlite" and not Path(path).is_file():
        raise UserError(f"MLflow store {tracking_uri!r}: there is no such file; train first")


def _check_keras_file(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise UserError(f"model file {str(path)!r}: expected a .keras archive, found other bytes")
