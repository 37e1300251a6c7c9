"""Interrupted training: killed at any step, or without its MLflow server."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import mlflow
import numpy as np
import pytest
from jobs import ANY_MODEL, QUICK, ROOT, python
from servers import PATIENCE_S, Gate, free_port, serving

from model.checkpoint import Checkpoint, Progress, checkpoint
from model.plan import plan
from model.train import run
from runtime.errors import UnavailableError, UserError
from schemas.config import InferConfig, TrainConfig

SMALL = TrainConfig(
    model_name="cut-short",
    epochs=6,
    architecture="unet",
    filters=2,
    batch_size=4,
    deterministic="on",
    crop=0.8,
    loss="cross-entropy",
)

KILLED = """
import os, signal, sys
from model import callbacks, train
from runtime.command_line import run_main

undisturbed, steps_to_live = sys.argv.pop(1), int(sys.argv.pop(1))
if undisturbed:
    print(train.main([one.replace("/killed/", f"/{undisturbed}/") for one in sys.argv[1:]]))
watch = callbacks.StopOnNonFiniteLoss.on_train_batch_end

def count(self, batch, logs=None):
    global steps_to_live
    steps_to_live -= 1
    if steps_to_live == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    watch(self, batch, logs)

callbacks.StopOnNonFiniteLoss.on_train_batch_end = count
sys.exit(run_main(train.main))
"""


def _train(
    dataset: Path,
    folder: Path,
    backend: str,
    *,
    steps_to_live: int = 0,
    undisturbed: str = "",
) -> subprocess.CompletedProcess[str]:
    """Runs a training in its own process, which is killed at the given step; 0 lets it finish.

    Args:
        undisturbed: folder beside this one in which the process trains from the start before.
    """
    arguments = [
        f"--dataset={dataset}",
        f"--tracking_uri=sqlite:///{folder}/mlflow.db",
        f"--state={folder}/state",
        "--floor=0",
        *(f"--{name}={value}" for name, value in SMALL.model_dump().items()),
        f"--backend={backend}",
    ]
    # The script imports Keras before the training chooses.
    env = {**os.environ, "KERAS_BACKEND": backend}
    return python("-c", KILLED, undisturbed, str(steps_to_live), *arguments, env=env)


def _outcome(folder: Path, uri: str, backend: str) -> tuple[dict, dict, list[np.ndarray]]:
    """Test metrics, metrics by epoch and weights of a trained model."""
    import keras
    import mlflow

    from model import registry, tracking

    tracking.connect(f"sqlite:///{folder}/mlflow.db")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    assert run.data.tags[tracking.BACKEND_TAG] == backend
    names = [name for name in run.data.metrics if not name.startswith(("system/", "epoch_sec"))]
    last = {name: run.data.metrics[name] for name in names if name.startswith(("test_", "best_"))}
    by_epoch = {
        name: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
        for name in names
        if name not in last
    }
    with registry.keras_file(uri) as path:
        network = keras.saving.load_model(path, compile=False)
    return last, by_epoch, network.get_weights()


# Two processes of their own, each with Keras and MLflow: to be killed, and to go on.
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_a_killed_training_ends_as_an_undisturbed_one(dataset, tmp_path, backend) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    # 8 steps per epoch: killed in the middle of the third.
    killed = _train(dataset, tmp_path / "killed", backend, steps_to_live=20)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = _train(dataset, tmp_path / "killed", backend, undisturbed="whole")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("going on after epoch 2") == 1

    whole, last = done.stdout.splitlines()[-2:]
    expected = _outcome(tmp_path / "whole", whole, backend)
    found = _outcome(tmp_path / "killed", last, backend)
    assert found[0] == expected[0]
    assert found[1] == expected[1]
    assert [step for step, _ in found[1]["val_loss"]] == [1, 2, 3, 4, 5, 6]
    for ours, theirs in zip(found[2], expected[2], strict=True):
        assert np.array_equal(ours, theirs)
    assert not list((tmp_path / "killed" / "state").iterdir())


def test_a_run_is_continued_with_the_same_weights_at_another_path(dataset, tmp_path) -> None:
    """The training's key has their bytes; MLflow refuses to change a parameter."""
    from model import tracking

    tracking.connect(f"sqlite:///{tmp_path}/mlflow.db")
    ids: list[str] = []
    for name in ("a.keras", "b.keras"):
        (tmp_path / name).write_bytes(b"the same")
        chosen = plan(str(dataset), SMALL.model_copy(update={"start_from": str(tmp_path / name)}))
        before = ids[0] if ids else None
        with tracking.training_run(chosen, before, None, print, ids.append) as run:
            params = mlflow.MlflowClient().get_run(run.id).data.params
        assert params["start_from"] == str(tmp_path / "a.keras")
        assert params["seed"] == "0"
    assert ids[0] == ids[1]


def test_a_kill_between_best_weights_and_state_leaves_them_in_step(tmp_path, monkeypatch) -> None:
    import keras

    from model import checkpoint

    def network(value: float) -> keras.Model:
        made = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        made.compile("sgd")
        made.optimizer.build(made.trainable_variables)
        made.set_weights([np.full((1, 1), value, np.float32)])
        return made

    def best_of(progress: Progress) -> float:
        made = network(0)
        kept.restore_best(made, progress)
        return float(made.get_weights()[0][0, 0])

    def killed(path: Path, arrays: list[np.ndarray], facts: dict) -> None:
        if path.name == "state.npz":
            raise KeyboardInterrupt
        write(path, arrays, facts)

    write, kept = checkpoint._write, Checkpoint(tmp_path)
    kept.save(network(1), Progress([{"loss": 3.0}], best_epoch=1, best_score=-3.0))
    monkeypatch.setattr(checkpoint, "_write", killed)
    later = Progress([{"loss": 3.0}, {"loss": 2.0}], best_epoch=2, best_score=-2.0)
    with pytest.raises(KeyboardInterrupt):
        kept.save(network(2), later)
    found = kept.restore(network(0))
    assert (len(found.epochs), found.best_epoch, best_of(found)) == (1, 1, 1.0)

    # The second epoch is trained again; the third one is worse.
    monkeypatch.setattr(checkpoint, "_write", write)
    kept.save(network(2), later)
    later.epochs.append({"loss": 4.0})
    kept.save(network(3), later)
    found = kept.restore(network(0))
    assert (len(found.epochs), found.best_epoch, best_of(found)) == (3, 2, 2.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-00002.npz", "state.npz"]


def test_weights_are_kept_even_if_scores_are_nan(tmp_path: Path) -> None:
    import keras

    from model.callbacks import SaveCheckpoint

    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    network.compile("sgd")
    network.optimizer.build(network.trainable_variables)
    kept, progress = Checkpoint(tmp_path), Progress()
    keep = SaveCheckpoint(TrainConfig(keep="loss"), progress, kept, lambda _: None)
    keep.set_model(network)
    best = []
    for epoch, loss in enumerate([float("nan"), float("nan"), 3.0, float("nan"), 2.0]):
        keep.on_epoch_begin(epoch)
        keep.on_epoch_end(epoch, {"val_mean_iou": 0.0, "val_loss": loss})
        kept.restore_best(network, progress)
        best.append(progress.best_epoch)
    assert best == [1, 1, 3, 3, 5]


def test_the_same_training_cannot_run_twice_at_once(tmp_path: Path) -> None:
    with (
        checkpoint(str(tmp_path), "a" * 64),
        checkpoint(str(tmp_path), "b" * 64),
        pytest.raises(UserError, match="another process trains on this dataset"),
        checkpoint(str(tmp_path), "a" * 64),
    ):
        pass


def test_a_state_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="cannot be written"),
        checkpoint(str(tmp_path / "file"), "a" * 64),
    ):
        pass


def _mlflow_server(folder: Path, port: int) -> tuple[list[str], str, Path, dict[str, str]]:
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}"),
        f"--backend-store-uri=sqlite:///{folder}/mlflow.db",
        f"--artifacts-destination={folder}/artifacts",
        "--workers=1",
    ]
    # As `make up` does: eight processes less.
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return command, f"http://127.0.0.1:{port}/health", folder / "server.log", environment


def _nothing_is_left_of_what_was_fetched(version: str, uri: str, scratch: Path) -> None:
    """Only the server has the files: each use fetches copies and removes them when it ends."""
    import mlflow

    from beam.infer.model_uri import resolve_model
    from model import registry

    assert list(scratch.iterdir()) == []
    assert registry.metadata(version)["geometry"]
    name, _, number = version.removeprefix("models:/").rpartition("/")
    key = mlflow.MlflowClient().get_model_version(name, number).tags["train_key"]
    assert registry.find_trained(name, key) == version
    assert registry.find_trained(name, "0" * 64) is None
    with registry.keras_file(version) as path:
        assert path.is_relative_to(scratch)
        expected = path.read_bytes()
    assert list(scratch.iterdir()) == []
    for folder in ("by-version", "by-alias"):
        (scratch / folder).mkdir()
    by_version = resolve_model(version, InferConfig(), uri, str(scratch / "by-version"))
    by_alias = resolve_model(
        "models:/cut-short@champion", InferConfig(), uri, str(scratch / "by-alias")
    )
    assert Path(by_version.keras_file).is_relative_to(scratch / "by-version")
    assert Path(by_alias.keras_file).read_bytes() == expected
    assert by_version.graph is not None
    assert sorted(path.name for path in scratch.iterdir()) == ["by-alias", "by-version"]


# Slow: MLflow's server starts twice, and its client tries again for a while.
def test_an_mlflow_server_that_goes_away_loses_no_epoch(dataset, tmp_path, monkeypatch) -> None:
    import mlflow

    from model import tracking, train

    port = free_port()
    gate = Gate(port)
    uri = f"http://127.0.0.1:{gate.port}"
    seen: list[tuple[int, int]] = []
    log_epochs = tracking.Run.log_epochs

    def log(run: tracking.Run, epochs: list[dict[str, float]]) -> None:
        if len(epochs) in (2, 6):
            gate.close()
        if len(epochs) == 4:
            gate.open()
        log_epochs(run, epochs)
        seen.append((len(epochs), len(run._sent)))

    monkeypatch.setattr(tracking.Run, "log_epochs", log)
    monkeypatch.setattr(train, "OUTAGE_TIMEOUT_S", 1.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(PATIENCE_S))
    config = SMALL.model_copy(update={"deterministic": "off", **QUICK, "epochs": 6})
    state = str(tmp_path / "state")
    with serving(*_mlflow_server(tmp_path, port)):
        gate.open()
        with pytest.raises(UnavailableError, match=r"the training is kept in .*run the same"):
            train.run(str(dataset), config, uri, ANY_MODEL, state=state)
        assert seen == [(1, 1), (2, 1), (3, 1), (4, 4), (5, 5), (6, 5)]
        gate.open()
        monkeypatch.setattr(tracking.Run, "log_epochs", None)
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(scratch))
        version = train.run(str(dataset), config, uri, ANY_MODEL, state=state)
        client = mlflow.MlflowClient()
        run_id = client.get_model_version("cut-short", version.rpartition("/")[2]).run_id
        history = client.get_metric_history(run_id, "val_loss")
        assert [one.step for one in history] == [1, 2, 3, 4, 5, 6]
        assert client.get_run(run_id).info.status == "FINISHED"
        assert len(client.search_model_versions("name = 'cut-short'")) == 1
        _nothing_is_left_of_what_was_fetched(version, uri, scratch)
        gate.close()


CONNECT = """
import sys
from pathlib import Path
from model import tracking

print("ready", flush=True)
sys.stdin.readline()
tracking.connect(sys.argv[1])
"""


def test_trainings_that_start_together_share_a_fresh_store(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/new/mlflow.db"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CONNECT, store],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends


def test_a_concurrently_created_experiment_is_used(tmp_path: Path, monkeypatch) -> None:
    """This can happen on a server, where no lock on this machine helps."""
    import mlflow

    from model import tracking

    store = f"sqlite:///{tmp_path}/mlflow.db"
    tracking.connect(store)
    monkeypatch.setattr(mlflow, "get_experiment_by_name", lambda _: None)
    tracking.connect(store)
    experiments = mlflow.MlflowClient(store).search_experiments()
    assert [one.name for one in experiments].count(tracking.EXPERIMENT) == 1


def test_an_mlflow_server_that_is_down_is_an_error_at_the_start(dataset, job) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    done = job("model.train", f"--dataset={dataset}", f"--tracking_uri={uri}")
    assert done.returncode == 75
    (line,) = [one for one in done.stderr.splitlines() if one.startswith("error:")]
    assert f"MLflow store {uri!r} cannot be used" in line
    assert "Traceback" not in done.stderr


def test_a_loss_that_is_not_finite_keeps_the_last_good_weights(
    dataset, tmp_path, monkeypatch
) -> None:
    import keras
    import mlflow

    from model import dataset as batches

    augment = batches.augment
    _, key = batches.draw(SMALL.seed, 1, 1, SMALL.batch_size)

    def poisoned(images, masks, draws, config):
        """Makes the second batch of epoch 2 NaN."""
        images, masks = augment(images, masks, draws, config)
        bad = keras.ops.all(draws[1] == key)
        return images * keras.ops.where(bad, np.nan, 1.0), masks

    monkeypatch.setattr(batches, "augment", poisoned)
    store = f"sqlite:///{tmp_path}/mlflow.db"
    said = r"at step 2 of epoch 2; the weights of epoch 1 are kept .* or set or lower --clip_norm"
    with pytest.raises(UserError, match=said):
        run(str(dataset), SMALL, store, ANY_MODEL, state=str(tmp_path / "state"))
    (kept,) = (tmp_path / "state").glob("*/last-good.keras")
    weights = keras.saving.load_model(kept, compile=False).get_weights()
    assert all(np.isfinite(one).all() for one in weights)
    assert mlflow.MlflowClient(store).search_registered_models() == []
