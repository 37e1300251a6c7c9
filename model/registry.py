"""Registers models in MLflow, finds and verifies them, moves aliases, logs the gate's decisions."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException

from model.decision import Decision
from model.plan import Plan, training_key
from model.tracking import ignore_user_warnings
from model.version_tags import (
    BEFORE_TAG,
    CHAMPION,
    CONFIG_TAG,
    DECISION,
    FILES_TAG,
    FINGERPRINT_TAG,
    GATE_TAG,
    KEY_TAG,
    ROLLED_BACK_TAG,
    checksums,
    refusal_reason,
)
from runtime.errors import UserError, first_line
from runtime.mlflow_store import (
    is_logged_model,
    is_missing,
    is_outage,
    parse_model_uri,
    registered_version,
    store_error,
)
from schemas.config import GateConfig, TrainConfig
from schemas.drift import Profile
from schemas.layout import VALIDATION

_REQUIREMENTS = ("mlflow", "keras", "tensorflow", "numpy", "pillow")

_EVALUATED = "evaluated"
"""Metric that marks an evaluation as complete."""


def register(
    files: dict[str, Path], plan: Plan, metrics: dict[str, float], card: str, validation: Profile
) -> str:
    """Logs the model with example and metadata, and registers it.

    Args:
        files: the ``.keras`` file as ``keras_file``, and the folder of its graph as ``openvino``;
            both are in one folder, with nothing else.
        validation: the network's predictions on the validation split.

    Returns:
        ``models:/<name>/<version>``.
    """
    size = (1, plan.manifest.config.height, plan.manifest.config.width, 3)
    with ignore_user_warnings():
        info = mlflow.pyfunc.log_model(
            name="unet",
            python_model=str(Path(__file__).with_name("serving.py")),
            artifacts={name: str(path) for name, path in files.items()},
            model_config=plan.geometry.model_dump() | plan.input_size(),
            # By a signature, MLflow would turn floats from 0 to 1 into black pixels, and take no
            # files; the server's own checks are stricter.
            signature=False,
            input_example={"image": np.zeros(size, np.uint8)},
            pip_requirements=[f"{package}=={version(package)}" for package in _REQUIREMENTS],
            metadata={**plan.model_metadata(), VALIDATION: validation.model_dump()},
        )
        registered = mlflow.register_model(
            info.model_uri,
            plan.config.model_name,
            # Set with the registration, so that no version lacks the key by which it is found.
            tags={
                KEY_TAG: plan.key,
                CONFIG_TAG: plan.config.model_dump_json(),
                FILES_TAG: checksums(files["keras_file"].parent),
                FINGERPRINT_TAG: plan.manifest.fingerprint,
                **{name: f"{value:.4f}" for name, value in metrics.items()},
            },
        )
    mlflow.MlflowClient().update_model_version(registered.name, registered.version, card)
    return f"models:/{registered.name}/{registered.version}"


def find_trained(name: str, key: str, run_id: str | None = None) -> str | None:
    """URI of the newest intact version trained with this key, by this run if given; or None.

    Intact means that the model's files have the checksums recorded when it was registered. A
    version without recorded checksums cannot be verified, so it does not count.
    """
    client = mlflow.MlflowClient()
    found = client.search_model_versions(f"name = '{name}' and tags.{KEY_TAG} = '{key}'")
    for entry in sorted(found, key=lambda entry: int(entry.version), reverse=True):
        uri = f"models:/{name}/{entry.version}"
        of_run = run_id in (None, entry.run_id)
        if of_run and FILES_TAG in entry.tags and not is_damaged(uri):
            return uri
    return None


def is_damaged(uri: str) -> bool:
    """Whether a version's files are missing, or differ from the checksums recorded, if any were."""
    recorded = _entry(uri).tags.get(FILES_TAG)
    try:
        _model(uri)
        with _artifacts(uri) as folder:
            return recorded not in (None, checksums(folder))
    except (MlflowException, OSError) as error:
        if is_outage(error):
            raise
        return True


def end_open_run(uri: str) -> None:
    """Ends the run that made a version, if an outage has left it open."""
    client, run_id = mlflow.MlflowClient(), _entry(uri).run_id
    if client.get_run(run_id).info.status == "RUNNING":
        client.set_terminated(run_id)


def set_alias(uri: str, alias: str) -> None:
    """Points an alias at the version ``models:/<name>/<version>``."""
    name, number = _name_and_version(uri)
    mlflow.MlflowClient().set_registered_model_alias(name, alias, number)


def version_of(uri: str) -> str:
    """Resolves the URI of a registered version, or of an alias, to ``models:/<name>/<version>``.

    Raises:
        UserError: there is no such version.
        UnavailableError: MLflow does not answer.
    """
    try:
        found = registered_version(mlflow.MlflowClient(), uri)
    except (MlflowException, OSError) as error:
        if not is_missing(error):
            raise store_error(mlflow.get_tracking_uri(), error) from error
        raise UserError(
            f"model {uri!r}: expected models:/<name>/<version> or models:/<name>@<alias> of a "
            f"registered version; {first_line(error)}"
        ) from error
    return f"models:/{found.name}/{found.version}"


def with_pinned_start(chosen: Plan) -> Plan:
    """The same plan with an alias in ``start_from`` replaced by the version to which it points.

    Raises:
        UserError: there is no such version.
    """
    origin = chosen.config.start_from
    # URIs of runs and of logged models always point to the same model.
    if not origin.startswith("models:/") or is_logged_model(origin):
        return chosen
    config = chosen.config.model_copy(update={"start_from": version_of(origin)})
    return dataclasses.replace(chosen, config=config, key=training_key(chosen.manifest, config))


def champion(name: str) -> str | None:
    """URI of the champion's version, or None if there is no champion."""
    try:
        found = mlflow.MlflowClient().get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if is_missing(error):
            return None
        raise
    return f"models:/{name}/{found.version}"


def record_decision(
    uri: str,
    champion_uri: str | None,
    fingerprint: str,
    decision: Decision,
    config: GateConfig,
) -> bool:
    """Logs the gate's decision to version and run; moves the champion's alias if promoted.

    ``earlier_refusal`` reads the decision back.

    Args:
        fingerprint: of the dataset whose test split decided.

    Returns:
        Whether the decision holds: False if the champion has changed; no alias is moved then.
    """
    client, run_id = mlflow.MlflowClient(), _entry(uri).run_id
    name, number = _name_and_version(uri)
    client.log_dict(run_id, decision.model_dump(), "gate.json")
    client.log_text(run_id, decision.to_markdown(uri, champion_uri), DECISION)
    # As late as possible: the registry has no compare-and-set for aliases.
    if champion(name) != champion_uri:
        return False
    if decision.promoted:
        before = _name_and_version(champion_uri)[1] if champion_uri else ""
        client.set_model_version_tag(name, number, BEFORE_TAG, before)
        set_alias(uri, CHAMPION)
    recorded = {
        "against": champion_uri,
        "dataset": fingerprint,
        "gate": config.sha256(),
        "promoted": decision.promoted,
        "reason": decision.reason,
    }
    client.set_model_version_tag(name, number, GATE_TAG, json.dumps(recorded))
    return True


def log_evaluation(uri: str, name: str, metrics: dict[str, float], folder: Path) -> str:
    """Logs an evaluation to the run that made a version; returns the URI of its files.

    Args:
        name: of the folder below ``evaluations``, and the metrics' prefix.
        metrics: those that are not finite are left out.
        folder: its files are logged; those of an earlier evaluation of this name are replaced.
    """
    client, run_id = mlflow.MlflowClient(), _entry(uri).run_id
    artifact_path = f"evaluations/{name}"
    client.log_artifacts(run_id, str(folder), artifact_path)
    for key, value in metrics.items():
        if math.isfinite(value):
            client.log_metric(run_id, f"{name}/{key}", value)
    client.log_metric(run_id, f"{name}/{_EVALUATED}", 1)
    return f"runs:/{run_id}/{artifact_path}"


def find_evaluation(uri: str, name: str) -> str | None:
    """URI of the files of an evaluation that ``log_evaluation`` has finished, or None.

    It is None, too, if the files have been deleted.
    """
    client, run_id = mlflow.MlflowClient(), _entry(uri).run_id
    done = f"{name}/{_EVALUATED}" in client.get_run(run_id).data.metrics
    if not done or not client.list_artifacts(run_id, f"evaluations/{name}"):
        return None
    return f"runs:/{run_id}/evaluations/{name}"


def read_run_file(folder: str, name: str) -> str:
    """Text of a file in a folder of a run, ``runs:/<id>/<path>``."""
    run_id, _, path = folder.removeprefix("runs:/").partition("/")
    with tempfile.TemporaryDirectory(prefix="lyft-evaluation-") as scratch:
        found = mlflow.MlflowClient().download_artifacts(run_id, f"{path}/{name}", scratch)
        return Path(found).read_text(encoding="utf-8")


def save_decision(uri: str, path: Path) -> None:
    """Copies the gate's last decision on a version to a Markdown file.

    Errors of MLflow and the file system are ignored: the file is only for display.
    """
    client = mlflow.MlflowClient()
    try:
        with tempfile.TemporaryDirectory(prefix="lyft-gate-") as scratch:
            shutil.copy(client.download_artifacts(_entry(uri).run_id, DECISION, scratch), path)
    except (MlflowException, OSError):
        return


def earlier_refusal(
    uri: str, champion_uri: str | None, fingerprint: str, config: GateConfig
) -> str | None:
    """Why the gate refuses a version without evaluating it, or None: ``refusal_reason``."""
    return refusal_reason(_entry(uri).tags, champion_uri, fingerprint, config)


def rollback(name: str) -> str:
    """Gives the champion's alias back to the previous champion; returns its URI.

    The gate never promotes a version again that was rolled back.

    Raises:
        UserError: there is no champion, or the previous one is missing, unknown or unusable.
    """
    client = mlflow.MlflowClient()
    current = champion(name)
    if current is None:
        raise UserError(f"model {name!r} has no champion to roll back")
    before = _entry(current).tags.get(BEFORE_TAG)
    advice = (
        f"choose another with `python -m model.gate --model models:/{name}/VERSION --dataset DIR "
        "--promote=always`"
    )
    if before is None:
        raise UserError(
            f"{current} did not become champion by a decision, so the one before it is not known; "
            f"{advice}"
        )
    if not before:
        raise UserError(f"{current} is the first champion of {name!r}: there is none before it")
    previous = f"models:/{name}/{before}"
    try:
        usable = not is_damaged(previous)
    except MlflowException as error:
        if not is_missing(error):
            raise
        raise UserError(
            f"{previous}, the champion before {current}, has been deleted; {advice}"
        ) from error
    if not usable:
        raise UserError(
            f"the files of {previous}, the champion before {current}, are damaged or gone; {advice}"
        )
    set_alias(previous, CHAMPION)
    client.set_model_version_tag(*_name_and_version(current), ROLLED_BACK_TAG, "true")
    return previous


def metadata(uri: str) -> dict[str, Any]:
    """Metadata stored with a model: see ``Plan.model_metadata``.

    Raises:
        UserError: there is no such model, or it was not logged by ``model.train``.
        UnavailableError: MLflow does not answer.
    """
    try:
        found = _model(uri).metadata
    except (MlflowException, OSError) as error:
        if not is_missing(error):
            raise store_error(mlflow.get_tracking_uri(), error) from error
        raise UserError(f"model {uri!r} cannot be found: {first_line(error)}") from error
    if not found or "geometry" not in found:
        raise UserError(
            f"model {uri!r} was not logged by `python -m model.train`; name a version or a run "
            "that was"
        )
    return dict(found)


def train_config(uri: str) -> dict[str, Any]:
    """The TrainConfig that a registered version was trained with, as a mapping."""
    metadata(uri)
    return TrainConfig.model_validate_json(_entry(uri).tags[CONFIG_TAG]).model_dump()


@contextmanager
def keras_file(uri: str) -> Iterator[Path]:
    """Yields a local path of a model's ``.keras`` file, valid during the block."""
    with _artifacts(uri) as folder:
        yield next(folder.glob("*.keras"))


def training_inputs(uri: str) -> tuple[str | None, str]:
    """Dataset (folder or URI) and initial weights (``start_from``) of the training of a model.

    None and "" if its run is not known.

    Args:
        uri: ``models:/<name>/<version>``, ``models:/m-<id>`` or ``runs:/<id>/unet``.
    """
    client, place = mlflow.MlflowClient(), uri.split("/")[1]
    try:
        if uri.startswith("runs:/"):
            run_id = place
        elif is_logged_model(uri):
            run_id = client.get_logged_model(place).source_run_id
        else:
            run_id = _entry(uri).run_id
        run = client.get_run(run_id)
    except MlflowException as error:
        if is_missing(error):
            return None, ""
        raise
    sources = [json.loads(found.dataset.source) for found in run.inputs.dataset_inputs]
    dataset = next((source["uri"] for source in sources if "uri" in source), None)
    return dataset, run.data.params.get("start_from", "")


def kept_metric(uri: str, metric: str) -> float:
    """A metric after the epoch whose weights a version has, from the run that made it."""
    client, run_id = mlflow.MlflowClient(), _entry(uri).run_id
    kept = client.get_run(run_id).data.metrics["best_epoch"]
    history = client.get_metric_history(run_id, metric)
    return next(float(epoch.value) for epoch in history if epoch.step == kept)


def _model(uri: str) -> mlflow.models.Model:
    """MLflow's model description; ``get_model_info`` would leave a copy in the temporary folder."""
    with tempfile.TemporaryDirectory(prefix="lyft-model-") as scratch:
        return mlflow.models.Model.load(
            mlflow.artifacts.download_artifacts(f"{uri}/MLmodel", dst_path=scratch)
        )


@contextmanager
def _artifacts(uri: str) -> Iterator[Path]:
    """Yields a local folder of a model's files, valid during the block."""
    with tempfile.TemporaryDirectory(prefix="lyft-model-") as scratch:
        # The artifacts of a SQLite store are on this machine already.
        copied = None if mlflow.get_tracking_uri().startswith("sqlite:") else scratch
        yield Path(mlflow.artifacts.download_artifacts(f"{uri}/artifacts", dst_path=copied))


def _entry(uri: str) -> Any:
    """MLflow's entry of the version ``models:/<name>/<version>``."""
    return mlflow.MlflowClient().get_model_version(*_name_and_version(uri))


def _name_and_version(uri: str) -> tuple[str, str]:
    name, number, _ = parse_model_uri(uri)
    return name, number
