"""Rollbacks to champions that cannot take the alias back."""

from pathlib import Path
from typing import Any

import pytest

from model.gate import main
from runtime.errors import UserError


@pytest.fixture
def versions(tmp_path: Path) -> Any:
    """MLflow's client, and a model "m" whose second version took the alias from its first."""
    import mlflow

    from model import tracking

    tracking.connect(f"sqlite:///{tmp_path}/mlflow.db")
    client = mlflow.MlflowClient()
    client.create_registered_model("m")
    for tags in ({"champion_before": ""}, {"champion_before": "1"}):
        version = client.create_model_version("m", str(tmp_path), tags=tags).version
        client.set_registered_model_alias("m", "champion", version)
    return client


def _refused(client: Any, reason: str, champion: str = "2") -> None:
    from model import registry

    with pytest.raises(UserError, match=f"{reason}.*--promote=always"):
        registry.rollback("m")
    assert registry.champion("m") == f"models:/m/{champion}"
    assert "rolled_back" not in client.get_model_version("m", champion).tags


def test_a_rollback_to_a_deleted_version_is_refused(versions) -> None:
    versions.delete_model_version("m", "1")
    _refused(versions, "models:/m/1, the champion before models:/m/2, has been deleted")


def test_a_rollback_to_a_version_without_files_is_refused(versions) -> None:
    """The alias would point at nothing, and every later run would fail."""
    _refused(versions, "files of models:/m/1, the champion before models:/m/2, are damaged or gone")


def test_the_champion_before_one_that_was_made_by_hand_is_not_known(versions, tmp_path) -> None:
    version = versions.create_model_version("m", str(tmp_path)).version
    versions.set_registered_model_alias("m", "champion", version)
    _refused(versions, "models:/m/3 did not become champion by a decision", "3")


@pytest.mark.usefixtures("versions")
def test_a_rollback_takes_a_name(tmp_path: Path) -> None:
    """Of a URI, it said that there is no champion."""
    for uri in ("models:/m", "m/2", "m@champion"):
        with pytest.raises(UserError, match=f"--rollback '{uri}': expected the name of a model"):
            main([f"--rollback={uri}", f"--tracking_uri=sqlite:///{tmp_path}/mlflow.db"])
