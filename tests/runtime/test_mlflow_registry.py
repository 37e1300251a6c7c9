"""The registry read without MLflow gives what MLflow gives, or leaves it to MLflow."""

from pathlib import Path

import pytest
from jobs import Trained
from servers import answering, free_port

from model.version_tags import FILES_TAG, KEY_TAG, checksums
from runtime import mlflow_registry
from runtime.mlflow_registry import NotReadError


def test_a_stores_tables_are_those_of_the_installed_mlflow() -> None:
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    assert ScriptDirectory.from_config(_get_alembic_config("sqlite://")).get_heads() == [
        mlflow_registry.SCHEMA_REVISION
    ]


def test_a_version_is_what_mlflow_says(trained: Trained) -> None:
    import mlflow

    client = mlflow.MlflowClient(trained.tracking_uri)
    (said,) = client.search_model_versions("name = 'small-unet'")
    with mlflow_registry.registry(trained.tracking_uri) as opened:
        found = opened.version_by_uri(trained.model)
        assert (found.uri, found.run_id, found.tags) == (trained.model, said.run_id, said.tags)
        assert found == opened.version_by_uri("models:/small-unet@champion")
        assert opened.versions_by_tag("small-unet", KEY_TAG, found.tags[KEY_TAG]) == [found]
        run = client.get_run(said.run_id).info
        assert opened.run(said.run_id) == (run.status, run.artifact_uri)
    place = client.get_model_version_download_uri(said.name, said.version)
    assert found.folder == mlflow_registry.local_folder(place)
    assert found.description["metadata"]["dataset_name"] == "small"
    assert checksums(found.folder / "artifacts") == found.tags[FILES_TAG]


@pytest.mark.parametrize(
    "uri", ["models:/none/1", "models:/small-unet@none", "models:/small-unet/latest", "models:/x"]
)
def test_unknown_versions_are_left_to_mlflow(uri: str, trained: Trained) -> None:
    with mlflow_registry.registry(trained.tracking_uri) as opened, pytest.raises(NotReadError):
        opened.version_by_uri(uri)


def test_a_deleted_version_is_not_found(trained: Trained) -> None:
    import mlflow

    client = mlflow.MlflowClient(trained.tracking_uri)
    first = client.get_model_version("small-unet", "1")
    # A source in the store would be looked up in MLflow's global one.
    source = client.get_model_version_download_uri("small-unet", "1")
    again = client.create_model_version("small-unet", source, first.run_id, tags={"x": "y"})
    with mlflow_registry.registry(trained.tracking_uri) as opened:
        assert [one.number for one in opened.versions_by_tag("small-unet", "x", "y")] == [2]
        client.delete_model_version("small-unet", again.version)
        for ask in (
            lambda: opened.version("small-unet", 2),
            lambda: opened.versions_by_tag("small-unet", "x", "y"),
        ):
            with pytest.raises(NotReadError):
                ask()


@pytest.mark.parametrize("place", ["mlflow-artifacts:/1/x", "s3://bucket/x", "file://host/x", "x"])
def test_files_elsewhere_are_left_to_mlflow(place: str) -> None:
    with pytest.raises(NotReadError):
        mlflow_registry.local_folder(place)
    assert mlflow_registry.local_folder("file:///a%20b/c") == Path("/a b/c")


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"<html>"])
def test_a_server_that_answers_otherwise_is_left_to_mlflow(body: bytes) -> None:
    with answering(lambda _: (200, body)) as address:
        with pytest.raises(NotReadError), mlflow_registry.registry(address) as opened:
            opened.version_by_uri("models:/m@champion")
        with pytest.raises(NotReadError), mlflow_registry.registry(address) as opened:
            opened.run("r")
    for uri in (f"http://127.0.0.1:{free_port()}", "postgresql://none", address):
        with pytest.raises(NotReadError), mlflow_registry.registry(uri) as opened:
            opened.version_by_uri("models:/m@champion")
