"""Reads MLflow's model registry without importing MLflow, which takes seconds.

Whatever cannot be read in this way raises ``NotReadError``. The caller then asks MLflow, which
knows all kinds of stores and explains what is wrong.
"""

from __future__ import annotations

import base64
import json
import os
import sqlite3
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlencode, urlsplit

from runtime.mlflow_store import parse_model_uri, prepare_store, sqlite_file

SCHEMA_REVISION = "dc11669786a5"
"""Revision of the SQLite tables that this module reads: that of the locked MLflow version."""

_MLMODEL_FILE = "MLmodel"
_TIMEOUT_S = 10.0
_UNSUPPORTED_VARIABLES = (
    "MLFLOW_WORKSPACE",
    "MLFLOW_TRACKING_AUTH",
    "MLFLOW_TRACKING_AWS_SIGV4",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "MLFLOW_TRACKING_INSECURE_TLS",
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
)
"""Environment variables by which MLflow reaches a server in ways that are not implemented here."""


class NotReadError(Exception):
    """The registry has no such entry, does not answer, or is of a kind that only MLflow reads."""


@dataclass(frozen=True)
class Version:
    """A registered version of a model.

    Attributes:
        number: its number, 1 or more.
        run_id: run that made it; empty if unknown.
        place: URI or path of the model's files.
    """

    name: str
    number: int
    run_id: str
    tags: dict[str, str]
    place: str

    @property
    def uri(self) -> str:
        """``models:/<name>/<version>``."""
        return f"models:/{self.name}/{self.number}"

    @property
    def folder(self) -> Path:
        """Folder of the model's files.

        Raises:
            NotReadError: they are not on this machine.
        """
        folder = local_folder(self.place)
        if not (folder / _MLMODEL_FILE).is_file():
            raise NotReadError(f"{folder} holds no model")
        return folder

    @cached_property
    def description(self) -> dict[str, Any]:
        """MLflow's description of the model: its file ``MLmodel``.

        Raises:
            NotReadError: it is not on this machine, or damaged.
        """
        import yaml

        text = (self.folder / _MLMODEL_FILE).read_text(encoding="utf-8")
        try:
            found = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise NotReadError(str(error)) from error
        if not isinstance(found, dict):
            raise NotReadError(f"{self.folder / _MLMODEL_FILE} is damaged")
        return found


class Registry(ABC):
    """A store of MLflow. Every method raises NotReadError."""

    @abstractmethod
    def version(self, name: str, number: int) -> Version:
        """A version by its number."""

    @abstractmethod
    def version_by_alias(self, name: str, alias: str) -> Version:
        """The version to which an alias points."""

    @abstractmethod
    def versions_by_tag(self, name: str, tag: str, value: str) -> list[Version]:
        """All versions with this value of a tag, newest first."""

    @abstractmethod
    def run(self, run_id: str) -> tuple[str, str]:
        """A run's status, such as ``FINISHED``, and the URI or path of its files."""

    def version_by_uri(self, uri: str) -> Version:
        """The version that ``models:/<name>/<number>`` or ``models:/<name>@<alias>`` names."""
        name, number, alias = parse_model_uri(uri)
        if alias:
            return self.version_by_alias(name, alias)
        if not name or not number.isdecimal():
            raise NotReadError(f"{uri} names no version")
        return self.version(name, int(number))


@contextmanager
def registry(tracking_uri: str) -> Iterator[Registry]:
    """Opens the registry of a SQLite store or of a server.

    Raises:
        NotReadError: it is of another kind, or cannot be opened.
        UserError: a SQLite store is damaged, or was moved.
    """
    try:
        if file := sqlite_file(tracking_uri):
            prepare_store(tracking_uri)
            with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
                connection.row_factory = sqlite3.Row
                yield _Database(connection)
        elif tracking_uri.startswith(("http://", "https://")):
            if found := [name for name in _UNSUPPORTED_VARIABLES if os.environ.get(name)]:
                raise NotReadError(f"{found[0]} is set")
            yield _Server(tracking_uri.rstrip("/"))
        else:
            raise NotReadError(f"{tracking_uri} is neither SQLite nor a server")
    # KeyError and TypeError: a server's response has another form.
    except (sqlite3.Error, OSError, KeyError, TypeError) as error:
        raise NotReadError(str(error)) from error


def local_folder(place: str) -> Path:
    """The folder that a path or a ``file:`` URI names.

    Raises:
        NotReadError: it is elsewhere.
    """
    parts = urlsplit(place)
    path = unquote(parts.path) if parts.scheme == "file" else place
    if parts.scheme not in ("", "file") or parts.netloc or not path.startswith("/"):
        raise NotReadError(f"{place} is not on this machine")
    return Path(path)


class _Database(Registry):
    """The tables of a SQLite store."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        if self._rows("SELECT version_num FROM alembic_version")[0][0] != SCHEMA_REVISION:
            raise NotReadError("the tables are of another version of MLflow")

    def version(self, name: str, number: int) -> Version:
        return self._versions("version = ?", name, number)[0]

    def version_by_alias(self, name: str, alias: str) -> Version:
        rows = self._rows(
            "SELECT version FROM registered_model_aliases"
            " WHERE workspace = 'default' AND name = ? AND alias = ?",
            *(name, alias),
        )
        return self.version(name, rows[0][0])

    def versions_by_tag(self, name: str, tag: str, value: str) -> list[Version]:
        return self._versions(
            "version IN (SELECT version FROM model_version_tags"
            " WHERE workspace = 'default' AND name = m.name AND key = ? AND value = ?)",
            *(name, tag, value),
        )

    def run(self, run_id: str) -> tuple[str, str]:
        found = self._rows("SELECT status, artifact_uri FROM runs WHERE run_uuid = ?", run_id)[0]
        return found[0], found[1]

    def _versions(self, condition: str, name: str, *values: object) -> list[Version]:
        # MLflow keeps the rows of deleted versions.
        rows = self._rows(
            "SELECT version, run_id, coalesce(storage_location, source) AS place"  # noqa: S608 - ours
            " FROM model_versions m WHERE workspace = 'default'"
            f" AND current_stage != 'Deleted_Internal' AND name = ? AND {condition}"
            " ORDER BY version DESC",
            *(name, *values),
        )
        return [
            Version(name, row["version"], row["run_id"] or "", self._tags(name, row), row["place"])
            for row in rows
        ]

    def _tags(self, name: str, row: sqlite3.Row) -> dict[str, str]:
        found = self._connection.execute(
            "SELECT key, value FROM model_version_tags"
            " WHERE workspace = 'default' AND name = ? AND version = ?",
            (name, row["version"]),
        )
        return {one["key"]: one["value"] for one in found}

    def _rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        """The rows of a query; NotReadError if there are none."""
        rows = self._connection.execute(query, values).fetchall()
        if not rows:
            raise NotReadError("there is no such entry")
        return rows


class _Server(Registry):
    """The REST API of a server."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        user, password = parts.username, parts.password
        user = unquote(user) if user else os.environ.get("MLFLOW_TRACKING_USERNAME")
        password = unquote(password) if password else os.environ.get("MLFLOW_TRACKING_PASSWORD")
        self._headers = {}
        if user and password:
            credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
            self._headers["Authorization"] = f"Basic {credentials}"
        elif token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
            self._headers["Authorization"] = f"Bearer {token}"
        host = parts.netloc.rpartition("@")[2]
        self._address = parts._replace(netloc=host).geturl()

    def version(self, name: str, number: int) -> Version:
        found = self._get("model-versions/get", name=name, version=number)
        return self._version(found["model_version"])

    def version_by_alias(self, name: str, alias: str) -> Version:
        found = self._get("registered-models/alias", name=name, alias=alias)
        return self._version(found["model_version"])

    def versions_by_tag(self, name: str, tag: str, value: str) -> list[Version]:
        condition = f"name = '{name}' and tags.{tag} = '{value}'"
        found = self._get("model-versions/search", filter=condition)
        if found.get("next_page_token"):
            raise NotReadError("the list has several pages")
        versions = [self._version(one) for one in found.get("model_versions", [])]
        return sorted(versions, key=lambda one: one.number, reverse=True)

    def run(self, run_id: str) -> tuple[str, str]:
        info = self._get("runs/get", run_id=run_id)["run"]["info"]
        return info["status"], info["artifact_uri"]

    def _version(self, found: dict[str, Any]) -> Version:
        name, number = found["name"], int(found["version"])
        place = self._get("model-versions/get-download-uri", name=name, version=number)
        tags = {one["key"]: one["value"] for one in found.get("tags", [])}
        return Version(name, number, found.get("run_id", ""), tags, place["artifact_uri"])

    def _get(self, endpoint: str, **query: object) -> dict[str, Any]:
        address = f"{self._address}/api/2.0/mlflow/{endpoint}?{urlencode(query)}"
        request = urllib.request.Request(address, headers=self._headers)  # noqa: S310 - http(s)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310
                return cast("dict[str, Any]", json.load(response))
        except (OSError, ValueError) as error:
            raise NotReadError(str(error)) from error
