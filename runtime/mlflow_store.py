"""Checks MLflow's store and translates its errors, without importing MLflow.

The import takes seconds; only the code that logs and resolves models does it.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from runtime.errors import UnavailableError, UserError, first_line
from runtime.mlflow_files import find_former_folder

TRACKING_URI = "sqlite:///outputs/mlflow/mlflow.db"
"""Default MLflow store of runs and models, also for the server of `make up`."""

_NO_ANSWER = re.compile(
    r"API request to .* failed with (?:timeout )?exception|failed with error code 5"
)
_OTHER_VERSION = re.compile(
    r"Can't locate revision[^\n]*|[^.\n]*out-of-date database schema[^.\n]*"
)
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def sqlite_file(tracking_uri: str) -> Path | None:
    """The file of a SQLite store; None if the store is a server or another database."""
    scheme, _, path = tracking_uri.partition(":///")
    return Path(path).absolute() if scheme == "sqlite" else None


def prepare_store(tracking_uri: str) -> None:
    """Checks the store before MLflow would retry for minutes, and makes MLflow wait and log less.

    Call it after importing MLflow, which sets the levels of its loggers.

    Raises:
        UserError: the store's file exists but is not a SQLite database, or was moved.
    """
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    # By default, MLflow retries each call for four minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    file = sqlite_file(tracking_uri)
    if file is None or not file.exists():
        return
    try:
        # For writing: a reader cannot roll back the journal that a killed process has left.
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True)) as found:
            found.execute("PRAGMA schema_version")
    except sqlite3.Error as error:
        raise UserError(
            f"MLflow store {tracking_uri!r} cannot be used: {file} does not open as a "
            f"SQLite database ({error}); name another, or restore the file"
        ) from error
    require_in_place(tracking_uri)


def require_in_place(tracking_uri: str) -> None:
    """Raises UserError if a SQLite store and its files were moved, which only its files tell."""
    file = sqlite_file(tracking_uri)
    if file and file.exists() and (old := find_former_folder(file)):
        raise UserError(
            f"MLflow store {tracking_uri!r} names its files in {old}, which is gone, and they are "
            "here: correct it with python -m flows.doctor --repair "
            + shlex.quote(f"--tracking_uri={tracking_uri}")
        )


def is_outage(error: Exception) -> bool:
    """Whether the error means that a server did not answer, as opposed to refusing."""
    if isinstance(error, UnavailableError | ConnectionError):
        return True
    # Of MLflow's errors, only those from a server's response have these attributes.
    if hasattr(error, "json") and hasattr(error, "get_http_status_code"):
        return bool(error.get_http_status_code() >= 500)
    return bool(_NO_ANSWER.search(str(error)))


def is_missing(error: Exception) -> bool:
    """Whether MLflow has no such model, or does not accept its name."""
    if is_outage(error):
        return False
    code = getattr(error, "error_code", None)
    return isinstance(error, OSError) or code in _MISSING or "Not a proper" in str(error)


def store_error(tracking_uri: str, error: Exception) -> UserError:
    """The error to raise instead of MLflow's: the store does not answer, or cannot be used."""
    complaint = f"MLflow store {tracking_uri!r} cannot be used"
    if is_outage(error):
        return UnavailableError(f"{complaint}: {first_line(error)}")
    if found := _OTHER_VERSION.search(str(error)):
        return UserError(
            f"{complaint}: its tables are of another MLflow version ({found[0].strip()}); bring "
            "older ones up to date with `mlflow db upgrade`, or use the MLflow that made them"
        )
    return UserError(f"{complaint}: {first_line(error)}")


class ModelUri(NamedTuple):
    """The parts of ``models:/<name>/<version>`` or ``models:/<name>@<alias>``.

    Attributes:
        version: a number or ``latest``; empty if the URI names none.
        alias: empty if there is none.
    """

    name: str
    version: str = ""
    alias: str = ""


def parse_model_uri(uri: str) -> ModelUri:
    """The parts of the URI of a registered model."""
    rest = uri.removeprefix("models:/")
    name, at, alias = rest.partition("@")
    if at:
        return ModelUri(name, alias=alias)
    name, slash, version = rest.rpartition("/")
    return ModelUri(name, version) if slash else ModelUri(rest)


def is_logged_model(uri: str) -> bool:
    """Whether a URI is the id of a logged model, ``models:/m-<id>``, which has no version."""
    return bool(re.fullmatch(r"models:/m-[0-9a-f]{32}", uri))


def registered_version(client: Any, uri: str) -> Any:
    """MLflow's entry of the version that ``models:/<name>/<version>`` or ``@<alias>`` names.

    The version may be ``latest``: the one with the highest number.

    Args:
        client: an ``MlflowClient``, whose errors are raised as they are.

    Raises:
        UserError: the URI names no version, or the model has none.
    """
    name, version, alias = parse_model_uri(uri)
    if alias:
        return client.get_model_version_by_alias(name, alias)
    if not version:
        if is_logged_model(uri):
            raise UserError(
                f"model {uri!r} is the id of a logged model, which has no version: expected "
                "models:/<name>/<version> of a registered one, or its run, runs:/<id>/unet"
            )
        raise UserError(
            f"model {uri!r} names no version: expected models:/<name>/<version> or "
            f"models:/<name>@<alias>, such as models:/{name or 'lyft-unet'}@champion, or /latest"
        )
    if version != "latest":
        return client.get_model_version(name, version)
    found = client.search_model_versions(f"name = '{name}'")
    if not found:
        raise UserError(
            f"model {uri!r}: no version of that name is registered; train one, or correct the name"
        )
    return max(found, key=lambda one: int(one.version))


@contextmanager
def outages_as_unavailable() -> Iterator[None]:
    """Decorator or context manager for code that calls MLflow repeatedly.

    Raises:
        UnavailableError: MLflow has stopped answering; replaces MLflow's own error.
    """
    try:
        yield
    except Exception as error:
        if not (hasattr(error, "error_code") and is_outage(error)):
            raise
        raise UnavailableError(
            f"MLflow does not answer: {first_line(error)}; run the same command again when it does"
        ) from error
