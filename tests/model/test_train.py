"""Training: plan, schedule, precision, early stopping, initial weights, what MLflow holds."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jobs import ANY_MODEL, IN_MEMORY, ROOT, SMALL

from model import hardware
from model.hardware import precision
from model.plan import plan
from model.train import run, starting_weights
from runtime.errors import UserError
from schemas.config import GateConfig, InferConfig, TrainConfig
from schemas.layout import SPLITS
from schemas.manifest import load_manifest


def test_the_small_dataset_is_what_these_tests_take_it_for(dataset: Path) -> None:
    manifest = load_manifest(dataset)
    assert (manifest.config.height, manifest.config.width) == (SMALL.height, SMALL.width)
    assert [manifest.splits[split].records for split in SPLITS] == [32, 4, 4]


def _changed(dataset: Path, folder: Path, **changes) -> str:
    """Writes only a manifest, with some of its fields changed."""
    manifest = load_manifest(dataset).model_copy(update=changes)
    folder.mkdir()
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return str(folder)


def test_unusable_datasets_are_refused_before_training(dataset, tmp_path) -> None:
    manifest = load_manifest(dataset)
    anysize = manifest.config.model_copy(update={"height": 0, "width": 0})
    with pytest.raises(UserError, match="holds images of any size"):
        plan(_changed(dataset, tmp_path / "anysize", config=anysize), TrainConfig())
    empty = {**manifest.splits, "test": manifest.splits["test"].model_copy(update={"records": 0})}
    with pytest.raises(UserError, match="has no record in test"):
        plan(_changed(dataset, tmp_path / "empty", splits=empty), TrainConfig())
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        plan(str(tmp_path), TrainConfig())
    for target in ("Unicorns", ",".join(manifest.taxonomy.names)):
        with pytest.raises(UserError, match="expected some, not all, of the classes"):
            plan(str(dataset), TrainConfig(target=target))


@pytest.mark.parametrize(
    ("is_in_train", "found"), [(False, "no pixel of it"), (True, "nothing else")]
)
def test_a_target_that_cannot_be_learnt_is_refused(dataset, tmp_path, is_in_train, found) -> None:
    """Such a network says the same everywhere, which is enough for the gate's floor."""
    splits = load_manifest(dataset).splits
    pixels = {
        name: count if (name == "Pedestrians") is is_in_train else 0
        for name, count in splits["train"].class_pixels.items()
    }
    train = splits["train"].model_copy(update={"class_pixels": pixels})
    folder = _changed(dataset, tmp_path / "changed", splits={**splits, "train": train})
    config = TrainConfig(target="Pedestrians")
    with pytest.raises(UserError, match=f"target 'Pedestrians': the train split .* has {found}"):
        run(folder, config, f"sqlite:///{tmp_path}/mlflow.db")
    assert not (tmp_path / "mlflow.db").exists()
    # It may still be evaluated on.
    plan(folder, config)


def test_class_weights_are_bounded(dataset: Path) -> None:
    none = TrainConfig(class_weights="none")
    assert plan(str(dataset), none).class_weights() is None
    weighted = TrainConfig(class_weights="manifest", max_class_weight=2)
    by_name = load_manifest(dataset).class_weights
    expected = [min(weight, 2.0) for weight in by_name.values()]
    assert plan(str(dataset), weighted).class_weights() == expected
    assert max(expected) == 2
    roots = [min(weight**0.5, 2.0) for weight in by_name.values()]
    assert plan(str(dataset), TrainConfig(max_class_weight=2)).class_weights() == roots
    rest, vehicles = plan(
        str(dataset), weighted.model_copy(update={"target": "Vehicles"})
    ).class_weights()
    assert rest < 1 < vehicles <= 2


@pytest.mark.parametrize(
    ("capabilities", "policy"),
    [
        ([(6, 1)], "float32"),
        ([(7, 5)], "mixed_float16"),
        ([(8, 0), (9, 0)], "mixed_bfloat16"),
        ([(9, 0), (7, 0)], "mixed_float16"),
    ],
)
def test_the_precision_is_fast_on_all_gpus(capabilities, policy) -> None:
    assert precision(TrainConfig(), capabilities) == policy
    assert precision(TrainConfig(precision="float32"), capabilities) == "float32"


@pytest.mark.parametrize(("fast", "policy"), [(True, "mixed_bfloat16"), (False, "float32")])
def test_the_precision_on_a_cpu(fast, policy, monkeypatch) -> None:
    monkeypatch.setattr(hardware, "has_fast_bfloat16", lambda: fast)
    assert hardware.precision(TrainConfig(), []) == policy
    assert hardware.precision(TrainConfig(precision="float32"), []) == "float32"


def test_a_trained_model_in_mlflow(trained, dataset: Path) -> None:
    import mlflow

    manifest = load_manifest(dataset)
    mlflow.set_tracking_uri(trained.tracking_uri)
    client = mlflow.MlflowClient()
    version = client.get_model_version_by_alias("small-unet", "champion")
    assert trained.model == f"models:/small-unet/{version.version}"
    assert "| mean_iou |" in version.description
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.inputs.dataset_inputs[0].dataset.digest == manifest.fingerprint
    assert run.data.params["filters"] == "4"
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    assert run.data.tags.get("mlflow.source.git.commit", "") == commit
    assert {
        "test_loss",
        "test_mean_iou",
        "test_challenge_score",
        "val_loss",
        "pixel_accuracy",
        "best_epoch",
        "system/cpu_utilization_percentage",
    } <= run.data.metrics.keys()
    for name in ("val_mean_iou", "epoch_seconds"):
        history = client.get_metric_history(version.run_id, name)
        assert [metric.step for metric in history] == [1, 2]
    names = {artifact.path for artifact in client.list_artifacts(version.run_id)}
    assert {
        "curves.png",
        "examples.png",
        "classes.csv",
        "confusion.png",
        "model_card.md",
        "gate.json",
    } <= names
    info = mlflow.models.get_model_info(trained.model)
    assert info.metadata["dataset_fingerprint"] == manifest.fingerprint
    assert info.metadata["taxonomy"]["name"] == "carla-0.8"
    # By a signature, MLflow would turn floats into black pixels before the model could refuse them.
    assert info.signature is None
    assert info.saved_input_example_info is not None


def test_the_best_epoch_is_registered(trained, dataset: Path) -> None:
    """Evaluated again from the file, the registered network has the metrics of its best epoch."""
    import keras
    import mlflow

    from model import registry, tracking
    from model.dataset import DatasetInput
    from model.evaluation import evaluate

    tracking.connect(trained.tracking_uri)
    chosen = plan(str(dataset), trained.config)
    with registry.keras_file(trained.model) as path:
        network = keras.saving.load_model(path, compile=False)
    found = evaluate(network, DatasetInput(chosen), chosen.taxonomy, "validation").metrics("val_")
    client = mlflow.MlflowClient()
    run_id = client.get_model_version("small-unet", trained.version[1:]).run_id
    history = [one.value for one in client.get_metric_history(run_id, "val_mean_iou")]
    assert found["val_mean_iou"] == pytest.approx(max(history), abs=1e-5)


@pytest.mark.parametrize(
    ("architecture", "target"), [("unet-2015", ""), ("unet-dropout", "Roads,RoadLines")]
)
def test_every_network_can_be_trained_served_and_used(
    architecture, target, dataset, tmp_path
) -> None:
    import duckdb
    import mlflow

    from beam.infer import pipeline as infer
    from beam.infer.model_uri import resolve_model
    from beam.runners.run import pipeline_options

    config = TrainConfig(
        architecture=architecture,
        target=target,
        channels=1 if target else 3,
        filters=2,
        epochs=1,
        loss="tversky",
        class_weights="manifest",
        normalisation="group",
        clip_norm=0.5,
        patience=1,
    )
    store = f"sqlite:///{tmp_path}/mlflow.db"
    uri = run(str(dataset), config, store, ANY_MODEL, state=str(tmp_path / "state"))
    answer = mlflow.pyfunc.load_model(uri).predict(np.zeros((2, 40, 50, 3), np.uint8))
    assert answer.shape == (2, 40, 50)
    assert answer.max() < (2 if target else 13)
    taxonomy = mlflow.models.get_model_info(uri).metadata["taxonomy"]
    assert len(taxonomy["classes"]) == (2 if target else 13)
    # By which beam.infer reads raw masks.
    resolved = resolve_model(uri, InferConfig(), store)
    assert resolved.mask_taxonomy == load_manifest(dataset).taxonomy
    assert resolved.own_ids(np.array([6, 7, 8, 255], np.uint8)).tolist() == (
        [1, 1, 0, 255] if target else [6, 7, 8, 255]
    )
    assert not list((tmp_path / "state").iterdir())

    client = mlflow.MlflowClient(store)
    card = client.get_model_version("lyft-unet", "1").description
    assert ("one logit, whose sigmoid is the probability of RoadLines+Roads" in card) is bool(
        target
    )
    assert ("logits of 13 classes of carla-0.8 out." in card) is not bool(target)
    run_id = client.get_model_version("lyft-unet", "1").run_id
    expected = client.get_run(run_id).data.metrics["test_pixel_accuracy"]
    for engine in ("tensorflow", "openvino"):
        tables = infer.run(
            uri,
            source=None,
            dataset=str(dataset),
            output=str(tmp_path / engine),
            config=InferConfig(engine=engine, precision="float32"),
            tracking_uri=store,
            options=pipeline_options(IN_MEMORY),
        )
        ((accuracy, pixels),) = duckdb.sql(
            f"FROM '{tables}/confusion/**/*.parquet' SELECT"
            " sum(pixel_count) FILTER (true_class_id = predicted_class_id) / sum(pixel_count),"
            " sum(pixel_count) WHERE split = 'test'"
        ).fetchall()
        assert pixels == 4 * 32 * 48
        assert accuracy == pytest.approx(expected, abs=2e-3)


def test_training_again_with_reuse_returns_the_same_version(trained, dataset: Path) -> None:
    again = run(str(dataset), trained.config, trained.tracking_uri, ANY_MODEL, reuse=True)
    assert again == trained.model


def test_a_training_starts_from_the_weights_of_another(trained, dataset, tmp_path) -> None:
    from model import registry, tracking

    tracking.connect(trained.tracking_uri)

    def start(**changes) -> Path | None:
        config = trained.config.model_copy(update={"start_from": trained.model, **changes})
        with starting_weights(plan(str(dataset), config)) as path:
            return path

    with registry.keras_file(trained.model) as path:
        assert start() == path
    with pytest.raises(UserError, match=r"has the classes None, .* has Rest, Vehicles of"):
        start(target="Vehicles")
    chosen = plan(str(dataset), trained.config.model_copy(update={"start_from": trained.model}))
    first, second, *others = chosen.taxonomy.classes
    swapped = [second.model_copy(update={"id": 0}), first.model_copy(update={"id": 1}), *others]
    other_order = chosen.taxonomy.model_copy(update={"classes": swapped})
    with (
        pytest.raises(UserError, match=r"has Buildings, None, .* in the same order"),
        starting_weights(dataclasses.replace(chosen, taxonomy=other_order)),
    ):
        pass
    with pytest.raises(UserError, match="cannot be found"):
        start(start_from="models:/small-unet/77")
    with pytest.raises(UserError, match="there is no such"):
        start(start_from="/none.keras")
    larger = TrainConfig(
        architecture="unet", start_from=str(start()), filters=5, model_name="other"
    )
    with pytest.raises(UserError, match="is another network or has other classes"):
        run(str(dataset), larger, trained.tracking_uri, state=str(tmp_path))


def test_the_training_key_depends_on_the_initial_weights(trained, dataset, tmp_path) -> None:
    import mlflow

    from model import registry, tracking

    tracking.connect(trained.tracking_uri)

    def key(start_from: str) -> str:
        config = trained.config.model_copy(update={"start_from": start_from})
        return registry.with_pinned_start(plan(str(dataset), config)).key

    client = mlflow.MlflowClient()
    made = client.get_model_version("small-unet", trained.version[1:])
    other = client.create_model_version("small-unet", made.source, made.run_id)
    client.set_registered_model_alias("small-unet", "moving", made.version)
    first = key("models:/small-unet@moving")
    assert first == key(trained.model)
    client.set_registered_model_alias("small-unet", "moving", other.version)
    assert key("models:/small-unet@moving") == key(f"models:/small-unet/{other.version}") != first
    client.delete_model_version("small-unet", other.version)

    file, copy = tmp_path / "weights.keras", tmp_path / "copy.keras"
    file.write_bytes(b"some")
    copy.write_bytes(b"some")
    same = key(str(file))
    assert key(str(copy)) == same
    file.write_bytes(b"other")
    assert key(str(file)) != same
    assert len({key(""), first, same}) == 3
    assert registry.find_trained("small-unet", key("")) == trained.model
    for nothing in ("models:/small-unet@nobody", "models:/small-unet/77"):
        with pytest.raises(UserError, match="of a registered version"):
            key(nothing)
    with pytest.raises(UserError, match="names no version: expected models:/<name>/<version> or"):
        key("models:/small-unet")


def test_a_champion_of_another_taxonomy_is_refused_before_training(trained, dataset) -> None:
    config = trained.config.model_copy(update={"target": "Roads"})
    with pytest.raises(UserError, match="they cannot be compared; choose another --model_name"):
        run(str(dataset), config, trained.tracking_uri, GateConfig())


MIRRORED = """
import sys
from pathlib import Path
import numpy as np
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
from model import hardware
from model.checkpoint import Checkpoint
from model.fit import fit
from model.plan import plan
from schemas.config import TrainConfig

dataset, folder = sys.argv[1:]
small = {"architecture": "unet", "filters": 2, "normalisation": "none", "dropout": 0}
config = TrainConfig(**small, epochs=2, batch_size=4)
found = []
for name, devices in {"one": [], "two": ["CPU:0", "CPU:1"]}.items():
    hardware.training_devices = lambda devices=devices: devices
    state = Path(folder, name)
    state.mkdir()
    _, progress = fit(plan(dataset, config), Checkpoint(state), lambda _: None, print)
    found.append([epoch["val_loss"] for epoch in progress.epochs])
assert tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).num_replicas_in_sync == 2
print("close:", np.allclose(found[0], found[1], rtol=0.02), found)
"""


def test_several_devices_train_as_one(dataset: Path, tmp_path: Path) -> None:
    """Two logical CPUs stand for two GPUs."""
    done = subprocess.run(
        [sys.executable, "-c", MIRRORED, str(dataset), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "close: True" in done.stdout
