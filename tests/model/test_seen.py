"""How many images of a dataset a registered model has seen in its training."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from ingesting import run_ingest
from jobs import SMALL
from PIL import Image

from images.png import encode
from model.gate import _decide_on, main
from model.plan import plan
from model.seen import count_seen
from runtime.mlflow_store import is_logged_model
from schemas.config import GateConfig
from schemas.layout import SOURCES
from schemas.manifest import load_manifest


def test_the_decision_says_who_has_seen_the_test_images(trained, dataset, scenes, tmp_path) -> None:
    """A version and a champion that were trained on another split of the same images."""
    from model import tracking

    tracking.connect(trained.tracking_uri)
    resplit = run_ingest(scenes, tmp_path, SMALL.model_copy(update={"seed": 2, "test": 0.3}))
    ids = [
        {row["id"] for row in pq.read_table(folder / SOURCES).to_pylist() if row["split"] in splits}
        for folder, splits in ((dataset, ("train", "validation")), (resplit, ("test",)))
    ]
    shared = len(ids[0] & ids[1])
    assert 0 < shared < len(ids[1])
    assert count_seen(trained.model, str(resplit), ["test"]) == shared
    assert count_seen(trained.model, str(dataset), ["test"]) == 0

    def reason(folder: Path) -> str:
        chosen = plan(str(folder), trained.config)
        counts = np.ones((chosen.manifest.splits["test"].records, 13, 13), np.int64)
        uri = trained.model
        return _decide_on(uri, uri, chosen, GateConfig(), lambda _: None, counts).reason

    said = f"{trained.model} has {shared} of the {len(ids[1])} test images in the train or"
    assert reason(resplit).count(said) == 2
    assert "test images" not in reason(dataset)


def test_the_gate_needs_no_validation_split(trained, scenes, tmp_path) -> None:
    """As of another drive, which is for tests."""
    tests = run_ingest(scenes, tmp_path, SMALL.model_copy(update={"validation": 0, "test": 0.5}))
    arguments = [f"--dataset={tests}", f"--tracking_uri={trained.tracking_uri}"]
    assert main([f"--model={trained.model}", *arguments]) == trained.model


def test_a_model_has_seen_what_the_one_it_started_from_has(
    trained, dataset, scenes, tmp_path
) -> None:
    """Fine-tuned on other images, a version still knows those of the first training."""
    import mlflow

    from model import tracking

    tracking.connect(trained.tracking_uri)
    client = mlflow.MlflowClient()
    client.create_registered_model("tuned")
    others = tmp_path / "others"
    shutil.copytree(scenes, others)
    for image in others.rglob("CameraRGB/*.png"):
        image.write_bytes(encode(255 - np.asarray(Image.open(image))))
    inverted = run_ingest(others, tmp_path, SMALL)

    def tune(folder: Path, start_from: str) -> str:
        config = trained.config.model_copy(update={"start_from": start_from})
        chosen = plan(str(folder), config)
        with tracking.training_run(chosen, None, None, print, lambda _: None) as made:
            pass
        version = client.create_model_version("tuned", str(tmp_path), made.id).version
        return f"models:/tuned/{version}"

    first = client.get_model_version(*trained.model.removeprefix("models:/").split("/"))
    run_id, logged = first.run_id, first.source
    assert is_logged_model(logged)
    training = load_manifest(dataset).splits["train"].records
    for start in (trained.model, f"runs:/{run_id}/unet", logged, "models:/tuned/1"):
        tuned = tune(inverted, start)
        assert count_seen(tuned, str(dataset), ["train"]) == training
        assert count_seen(tuned, str(dataset), ["test"]) == 0
    assert count_seen(tune(inverted, ""), str(dataset), ["train"]) == 0
    # Of a version that is gone, nothing is known.
    lost = tune(inverted, "models:/tuned/77")
    assert count_seen(lost, str(dataset), ["train"]) is None
    assert count_seen(lost, str(inverted), ["train"]) == training
