import json
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL

from schemas.classes import VOID
from schemas.config import TrainConfig
from schemas.errors import UserError
from schemas.layout import SPLITS
from schemas.manifest import Manifest, load_manifest
from schemas.stats import ConfusionMatrix


@pytest.mark.parametrize(("classes", "parameters"), [(13, 8_640_141), (23, 8_640_471)])
def test_the_unet_of_the_notebooks(classes: int, parameters: int) -> None:
    from model.unet import unet

    model = unet(classes)
    assert model.count_params() == parameters
    assert model.output.dtype == "float32"
    assert model.compute_output_shape((None, 96, 128, 3)) == (None, 96, 128, classes)


def test_the_unet_takes_any_multiple_of_16_and_any_number_type() -> None:
    from model.unet import unet

    model = unet(5, filters=2)
    image = np.random.default_rng(0).integers(0, 256, (2, 48, 80, 3), np.uint8)
    logits = model(image)
    assert logits.shape == (2, 48, 80, 5)
    assert np.allclose(logits, model(image.astype(np.float32)), atol=1e-5)


def test_metrics_agree_with_the_confusion_matrix() -> None:
    from model.metrics import SegmentationMetrics

    random = np.random.default_rng(0)
    metric = SegmentationMetrics(5)
    total = ConfusionMatrix.zero(5)
    for _ in range(3):
        # Class 4 never occurs, in truth or prediction.
        truth = random.choice([0, 1, 2, 3, VOID], (2, 8, 6)).astype(np.uint8)
        logits = random.normal(size=(2, 8, 6, 5)).astype(np.float32)
        logits[..., 4] = -100
        metric.update_state(truth[..., None], logits)
        total += ConfusionMatrix.of(truth, logits.argmax(-1).astype(np.uint8), 5)
    assert np.array_equal(metric.matrix, total.counts)
    result = metric.result()
    assert float(result["pixel_accuracy"]) == pytest.approx(total.pixel_accuracy())
    assert float(result["mean_iou"]) == pytest.approx(total.mean_iou())


def test_input_yields_each_record_once_in_a_seeded_order(dataset: Path) -> None:
    from model.dataset import batches

    manifest = load_manifest(dataset)

    def images(split: str, seed: int | None) -> list[bytes]:
        one_pass = batches(dataset, manifest, split, 5, seed)
        return [image.tobytes() for batch, _ in one_pass for image in batch.numpy()]

    plain = images("train", None)
    assert len(set(plain)) == 32
    shuffled = images("train", 1)
    assert shuffled != plain
    assert sorted(shuffled) == sorted(plain)
    assert images("train", 1) == shuffled
    image, mask = next(iter(batches(dataset, manifest, "test", 4)))
    assert image.shape == (4, 32, 48, 3)
    assert mask.shape == (4, 32, 48, 1)


def _with(manifest: Manifest, **config: int) -> Manifest:
    return manifest.model_copy(update={"config": manifest.config.model_copy(update=config)})


def test_what_cannot_be_trained_on_is_refused(dataset: Path, tmp_path: Path) -> None:
    from model.train import check_trainable, run

    manifest = load_manifest(dataset)
    check_trainable(manifest)
    with pytest.raises(UserError, match="multiples of 16"):
        check_trainable(_with(manifest, height=33))
    with pytest.raises(UserError, match="holds images of any"):
        check_trainable(_with(manifest, height=0, width=0))
    empty = {**manifest.splits, "test": manifest.splits["test"].model_copy(update={"records": 0})}
    with pytest.raises(UserError, match="no record in test"):
        check_trainable(manifest.model_copy(update={"splits": empty}))
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        run(str(tmp_path), TrainConfig(), "sqlite:///unused.db")


def test_a_trained_model_in_mlflow(trained, dataset: Path) -> None:
    import mlflow

    manifest = load_manifest(dataset)
    mlflow.set_tracking_uri(trained.tracking_uri)
    client = mlflow.MlflowClient()
    version = client.get_model_version_by_alias("small-unet", "champion")
    assert trained.model == f"models:/small-unet/{version.version}"
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.inputs.dataset_inputs[0].dataset.digest == manifest.fingerprint
    assert run.data.params["filters"] == "4"
    assert {
        "test_loss",
        "test_mean_iou",
        "test_challenge_score",
        "val_loss",
        "pixel_accuracy",
    } <= run.data.metrics.keys()
    assert len(client.get_metric_history(version.run_id, "val_mean_iou")) == 2
    names = {artifact.path for artifact in client.list_artifacts(version.run_id)}
    assert {"curves.png", "examples.png", "classes.csv", "confusion.png"} <= names
    info = mlflow.models.get_model_info(trained.model)
    assert info.metadata["dataset_fingerprint"] == manifest.fingerprint
    assert info.metadata["taxonomy"]["name"] == "carla-0.8"
    assert json.loads(info.signature.to_dict()["outputs"])[0]["tensor-spec"]["dtype"] == "uint8"


def test_the_logged_model_answers_with_class_ids(trained) -> None:
    import mlflow

    mlflow.set_tracking_uri(trained.tracking_uri)
    model = mlflow.pyfunc.load_model(trained.model)
    image = np.zeros((1, 30, 50, 3), np.uint8)
    answer = model.predict(image)
    assert answer.shape == (1, 30, 50)
    assert answer.dtype == np.uint8
    assert answer.max() < 13


def test_a_loss_that_is_not_finite_registers_nothing(dataset, tmp_path, monkeypatch) -> None:
    import keras
    import mlflow

    from model import train, unet

    def diverging(classes: int, *_: object) -> keras.Model:
        inputs = keras.Input((None, None, 3))
        x = keras.layers.Rescaling(float("nan"))(inputs)
        return keras.Model(inputs, keras.layers.Conv2D(classes, 1)(x))

    monkeypatch.setattr(unet, "unet", diverging)
    store = f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(UserError, match="the loss was not finite"):
        train.run(str(dataset), TrainConfig(epochs=2, filters=2), store)
    assert mlflow.MlflowClient(store).search_registered_models() == []


@pytest.mark.parametrize("alias", ["latest", "v1", "with space"])
def test_aliases_that_mlflow_refuses_are_refused_at_once(alias: str) -> None:
    with pytest.raises(ValueError, match="alias"):
        TrainConfig(alias=alias)


def test_training_again_with_reuse_returns_the_same_version(trained, dataset: Path) -> None:
    from model.train import run

    assert run(str(dataset), trained.config, trained.tracking_uri, reuse=True) == trained.model


def test_the_small_dataset_is_what_these_tests_take_it_for(dataset: Path) -> None:
    manifest = load_manifest(dataset)
    assert (manifest.config.height, manifest.config.width) == (SMALL.height, SMALL.width)
    assert [manifest.splits[split].records for split in SPLITS] == [32, 4, 4]
