"""The look-up of a reusable training without MLflow: the same result as with it, or None."""

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from jobs import ANY_MODEL, Trained

from model.plan import plan
from model.reuse import find_reusable_result
from model.train import run
from model.version_tags import GATE_TAG, ROLLED_BACK_TAG
from schemas.config import GateConfig

NAME = "small-unet"


@pytest.fixture
def ask(dataset: Path, trained: Trained, tmp_path: Path) -> Callable[..., str | None]:
    """Asks for the result of the shared training, and what it says."""

    def known(gate: GateConfig = ANY_MODEL) -> str | None:
        said.clear()
        chosen = plan(str(dataset), trained.config)
        state, decision = str(tmp_path / "state"), str(tmp_path / "decision.md")
        return find_reusable_result(
            chosen, gate, trained.tracking_uri, state, decision, said.append
        )

    said: list[str] = []
    known.said = said
    return known


@pytest.fixture
def client(trained: Trained) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(trained.tracking_uri)


def test_the_result_equals_that_of_mlflow(ask, dataset, trained, tmp_path, monkeypatch) -> None:
    assert ask() == trained.model
    assert ask.said == [
        f"nothing has changed: {trained.model} was trained on this dataset with this configuration"
    ]
    decision = tmp_path / "decision.md"
    quick = decision.read_text(encoding="utf-8")
    decision.unlink()
    monkeypatch.setattr("model.train.find_reusable_result", lambda *_: None)
    given = (str(dataset), trained.config, trained.tracking_uri, ANY_MODEL)
    assert run(*given, state=str(tmp_path), reuse=True, decision=str(decision)) == trained.model
    assert decision.read_text(encoding="utf-8") == quick


@pytest.mark.parametrize("name", ["artifacts/unet.keras", "artifacts/openvino/unet.bin", "MLmodel"])
def test_damaged_files_are_left_to_mlflow(name: str, ask, client, trained) -> None:
    assert ask() == trained.model
    version = client.get_model_version_download_uri(NAME, "1")
    file = Path(version.removeprefix("file://"), name)
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[:-1] + b"?" if name != "MLmodel" else b": [")
        assert ask() is None
        file.unlink()
        assert ask() is None
    finally:
        file.write_bytes(whole)
    assert ask() == trained.model


def test_open_runs_and_changed_champions_are_left_to_mlflow(ask, client, trained) -> None:
    first = client.get_model_version(NAME, "1")
    client.update_run(first.run_id, "RUNNING")
    assert ask() is None
    client.update_run(first.run_id, "FINISHED")
    assert ask() == trained.model

    champion = client.create_model_version(NAME, first.source, first.run_id).version
    client.set_registered_model_alias(NAME, "champion", champion)
    assert ask(GateConfig(promote="never")) == trained.model
    # The gate must decide against the new one.
    assert ask() is None
    refused = {"against": f"models:/{NAME}/{champion}", "gate": ANY_MODEL.sha256()}
    refused |= {"promoted": False, "reason": "It is worse."}
    before = first.tags[GATE_TAG]
    client.set_model_version_tag(NAME, "1", GATE_TAG, json.dumps(refused))
    client.set_registered_model_alias(NAME, "challenger", "1")
    assert ask() == f"models:/{NAME}/{champion}"
    assert ask.said[1] == "not promoted: It is worse."
    # Another gate, and another challenger.
    assert ask(GateConfig(margin=0.5)) is None
    assert ask(GateConfig(promote="always")) is None
    client.set_registered_model_alias(NAME, "challenger", champion)
    assert ask() is None
    client.delete_registered_model_alias(NAME, "challenger")
    assert ask() is None

    client.set_registered_model_alias(NAME, "challenger", "1")
    client.set_model_version_tag(NAME, "1", GATE_TAG, before)
    client.set_model_version_tag(NAME, "1", ROLLED_BACK_TAG, "true")
    assert ask() == f"models:/{NAME}/{champion}"
    assert ask.said[1] == "not promoted: It was rolled back."
    # Its files are gone, or it is.
    client.delete_registered_model_alias(NAME, "champion")
    assert ask() is None


def test_a_deleted_version_is_not_reused(ask, client) -> None:
    client.delete_model_version(NAME, "1")
    assert ask() is None
