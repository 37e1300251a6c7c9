"""Sweeps: the grid's configurations, failed trainings, the parent run."""

import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest
from jobs import QUICK

from model.sweep import _train, grid, run
from runtime.command_line import to_arguments
from runtime.errors import UnavailableError, UserError
from schemas.config import GateConfig, TrainConfig


def test_a_grid_is_the_product_of_its_axes() -> None:
    base = TrainConfig(epochs=3)
    configs = grid(base, ["filters=4,8", "learning_rate=0.1,0.01"])
    assert [(one.filters, one.learning_rate, one.epochs) for one in configs] == [
        (4, 0.1, 3),
        (4, 0.01, 3),
        (8, 0.1, 3),
        (8, 0.01, 3),
    ]
    for axis, message in [
        ("filters", "expected <parameter>=<value>"),
        ("unicorns=1", "the parameter one of"),
        ("filters=0", "filters: Input should be greater"),
        ("filters=many", "invalid int value"),
    ]:
        with pytest.raises(UserError, match=message):
            grid(base, [axis])
    with pytest.raises(UserError, match="filters is given twice; list all its values at once"):
        grid(base, ["filters=4", "seed=1", "filters=8"])


def test_models_of_different_classes_are_not_compared(dataset: Path, tmp_path: Path) -> None:
    configs = [TrainConfig(target=target) for target in ("Roads", "Vehicles")]
    with pytest.raises(UserError, match="models of different classes cannot be compared"):
        run(str(dataset), configs, f"sqlite:///{tmp_path}/mlflow.db", GateConfig())
    assert not list(tmp_path.iterdir())


def test_the_parent_run_of_a_sweep_that_fails_does_not_stay_open(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    from model import sweep

    store = f"sqlite:///{tmp_path}/mlflow.db"
    seen: list[str] = []

    def train(*arguments: object) -> None:
        seen.append(mlflow.MlflowClient(store).get_run(str(arguments[-1])).info.status)

    monkeypatch.setattr(sweep, "_train", train)
    for _ in range(2):
        with pytest.raises(UserError, match="no configuration of the sweep could be trained"):
            run(str(dataset), [TrainConfig()], store, GateConfig())
        (parent,) = mlflow.search_runs(experiment_names=["lyft-unet"], output_format="list")
        assert parent.info.status == "FAILED"
    assert seen == ["RUNNING", "RUNNING"]


def test_a_training_is_judged_by_the_epoch_whose_weights_it_keeps(tmp_path: Path) -> None:
    """With ``keep=last`` or ``loss``, that is not always the one with the best mean IoU."""
    import mlflow

    from model import registry, tracking

    tracking.connect(f"sqlite:///{tmp_path}/mlflow.db")
    client = mlflow.MlflowClient()
    with mlflow.start_run() as started:
        for epoch, value in enumerate([0.1, 0.5, 0.2], 1):
            mlflow.log_metric("val_mean_iou", value, epoch)
        mlflow.log_metric("best_epoch", 3)
    client.create_registered_model("m")
    client.create_model_version("m", str(tmp_path), started.info.run_id)
    assert registry.kept_metric("models:/m/1", "val_mean_iou") == 0.2


@pytest.mark.parametrize("code", [75, 2, -9])
def test_only_an_outage_ends_a_sweep(monkeypatch, code: int) -> None:
    """A flow retries a sweep if a service was unavailable, as it does a single training."""
    done = subprocess.CompletedProcess([], code, stdout="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    outage = pytest.raises(UnavailableError, match="see above") if code == 75 else nullcontext()
    with outage:
        assert _train("dataset", TrainConfig(), "http://127.0.0.1:1", "state", "parent") is None


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Starts only the first training of a test as a process; returns the exit of each."""
    start, ends = subprocess.run, []

    def run(command: list[str], **options) -> subprocess.CompletedProcess[str]:
        from model import train

        if command[1:3] != ["-m", "model.train"]:
            return start(command, **options)
        if ends:
            try:
                uri = train.main(command[3:])
            except UserError as error:
                ends.append(str(error))
                return subprocess.CompletedProcess(command, 2, "")
            ends.append("in this process")
            return subprocess.CompletedProcess(command, 0, f"{uri}\n")
        done = start(command, **options)
        ends.append(f"code {done.returncode}")
        return done

    monkeypatch.setattr(subprocess, "run", run)
    return ends


# Slow: a training for each point of a grid.
def test_a_sweep_has_a_parent_run_and_judges_its_best(
    dataset, one_process: list[str], capsys, tmp_path: Path
) -> None:
    import mlflow

    from model import sweep

    store = f"sqlite:///{tmp_path}/mlflow.db"
    damaged = tmp_path / "damaged.keras"
    damaged.write_bytes(b"damaged")
    arguments = [
        f"--dataset={dataset}",
        f"--tracking_uri={store}",
        f"--state={tmp_path}/state",
        *to_arguments(TrainConfig(**QUICK, batch_size=16)),
        *("--floor=0", f"--grid=start_from=,{damaged}", "--grid=learning_rate=1e-9,1e-2"),
    ]
    best = sweep.main(arguments)
    assert one_process[:2] == ["code 0", "in this process"]
    assert all(str(damaged) in error for error in one_process[2:])
    said = capsys.readouterr().err
    client = mlflow.MlflowClient(store)
    champion = client.get_model_version_by_alias("lyft-unet", "champion")
    assert best == f"models:/lyft-unet/{champion.version}"
    (experiment,) = client.search_experiments(filter_string="name = 'lyft-unet'")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "sweep_key" in run.data.tags]
    everything = [run for run in runs if run is not parent]
    children = [run for run in everything if run.info.status == "FINISHED"]
    assert [run.info.status for run in everything].count("FAILED") == len(children) == 2
    for child in everything:
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    scores = {child.info.run_id: child.data.metrics["val_mean_iou"] for child in children}
    assert parent.data.metrics["best_score"] == max(scores.values())
    winner = client.get_model_version("lyft-unet", best[-1:])
    assert scores[winner.run_id] == max(scores.values())
    table = mlflow.artifacts.load_text(f"{parent.info.artifact_uri}/sweep.md")
    assert f"| failed | start_from={damaged}, learning_rate=0.01 | |" in table
    assert f"| {best} | start_from=, learning_rate=" in table
    assert table in said
    assert f"warning: the training with start_from={damaged}, learning_rate=0.01 failed" in said

    # Only what failed is tried again, in its run.
    assert sweep.main(arguments) == best
    assert len(client.search_runs([experiment.experiment_id])) == 5
