"""Trainings that meet versions, runs and checkpoints of earlier or concurrent attempts."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from jobs import ANY_MODEL, QUICK
from servers import until

from model.checkpoint import checkpoint
from model.gate import check_champion
from model.plan import plan
from model.train import run
from schemas.config import TrainConfig

CONFIG = TrainConfig(architecture="unet", model_name="cut-off", epochs=1, filters=2)


# Slow: two trainings in a registry of their own.
def test_a_version_is_reused_only_while_its_files_are_what_was_registered(
    dataset: Path, tmp_path: Path
) -> None:
    import mlflow

    from model import registry

    store = f"sqlite:///{tmp_path}/mlflow.db"
    config = TrainConfig(**QUICK, model_name="damaged", batch_size=16)

    def train() -> str:
        state = str(tmp_path / "state")
        return run(str(dataset), config, store, ANY_MODEL, state=state, reuse=True)

    assert train() == "models:/damaged/1"
    (file,) = tmp_path.rglob("unet.keras")
    file.write_bytes(file.read_bytes()[:-1])
    # The champion can no longer be loaded, so the gate does not compare with it.
    assert train() == "models:/damaged/2"
    assert registry.champion("damaged") == "models:/damaged/2"
    assert train() == "models:/damaged/2"

    chosen = plan(str(dataset), config)
    key = chosen.key
    file.unlink()
    (graph,) = (path for path in tmp_path.rglob("unet.bin") if path.parents[1] != file.parent)
    whole = graph.read_bytes()
    graph.write_bytes(whole[::-1])
    assert registry.find_trained("damaged", key) is None
    graph.write_bytes(whole)
    assert registry.find_trained("damaged", key) == "models:/damaged/2"
    client = mlflow.MlflowClient()
    # As registered by an older version of this project.
    client.delete_model_version_tag("damaged", "2", "files_sha256")
    assert registry.find_trained("damaged", key) is None
    # The next training is not refused for a champion whose files are all gone.
    shutil.rmtree(graph.parents[2])
    check_champion("damaged", chosen.taxonomy)


def test_a_concurrent_training_is_waited_for_and_reused(
    dataset, trained, tmp_path, monkeypatch
) -> None:
    from model import registry, tracking, train

    tracking.connect(trained.tracking_uri)
    key = registry.with_pinned_start(plan(str(dataset), trained.config)).key
    said: list[str] = []
    monkeypatch.setattr(train, "log", said.append)
    find = registry.find_trained

    def run() -> str:
        given = (str(dataset), trained.config, trained.tracking_uri, ANY_MODEL)
        return train.run(*given, state=str(tmp_path), reuse=True)

    with ThreadPoolExecutor() as pool:
        with checkpoint(str(tmp_path), key) as other:
            # While the other one trains, there is no version yet.
            monkeypatch.setattr(registry, "find_trained", lambda *_: None)
            monkeypatch.setattr(train, "find_reusable_result", lambda *_: None)
            waiting = pool.submit(run)
            until(lambda: said or waiting.done())
            assert "another process trains on this dataset" in said[0]
            monkeypatch.setattr(registry, "find_trained", find)
            other.remove()
        assert waiting.result() == trained.model
    assert said[1].startswith(f"nothing has changed: {trained.model}")
    assert not list(tmp_path.iterdir())


def test_an_attempt_cut_off_while_parameters_are_logged_continues_its_run(
    dataset, tmp_path, monkeypatch
) -> None:
    import mlflow

    from model import fit, tracking, train

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    def attempt() -> None:
        with pytest.raises(KeyboardInterrupt):
            train.run(str(dataset), CONFIG, store, ANY_MODEL, state=str(tmp_path / "state"))

    store = f"sqlite:///{tmp_path}/mlflow.db"
    with monkeypatch.context() as patched:
        patched.setattr(mlflow, "log_params", cut_off)
        attempt()
    monkeypatch.setattr(fit, "fit", cut_off)
    attempt()
    attempt()
    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id])
    assert run.data.params["epochs"] == str(CONFIG.epochs)
    assert len(run.inputs.dataset_inputs) == 1


def test_an_attempt_cut_off_after_registering_is_cleaned_up(dataset, trained, tmp_path) -> None:
    import mlflow

    from model import registry, tracking, train

    tracking.connect(trained.tracking_uri)
    key = registry.with_pinned_start(plan(str(dataset), trained.config)).key
    client = mlflow.MlflowClient()
    run_id = client.get_model_version("small-unet", trained.version[1:]).run_id
    # MLflow went away between the registration and the end of the run.
    client.update_run(run_id, "RUNNING")
    given = (str(dataset), trained.config, trained.tracking_uri, ANY_MODEL)
    with checkpoint(str(tmp_path), key) as kept:
        kept.run_id = run_id
        assert train.run(*given, state=str(tmp_path), reuse=True) == trained.model
        # Another process may still need it.
        assert kept.run_id == run_id
    assert train.run(*given, state=str(tmp_path), reuse=True) == trained.model
    assert client.get_run(run_id).info.status == "FINISHED"
    assert not list(tmp_path.iterdir())
