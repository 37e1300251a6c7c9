"""A registered model on any dataset of its classes: the same metrics and tables as a training's.

In processes of their own: in one that has trained, MLflow remembers a run's folder by its id, which
a copy of the store shares.
"""

import shutil
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
from ingesting import run_ingest
from jobs import IN_MEMORY, SMALL, Job, Trained

from model import registry, tracking
from model.evaluate import plan_for_version, run
from model.frames import FramesMissingError, frames
from model.seen import count_seen
from model.version_tags import CONFIG_TAG
from runtime.errors import UserError
from schemas.classes import VOID, load_taxonomy
from schemas.layout import SOURCES
from schemas.manifest import load_manifest
from schemas.stats import ConfusionMatrix


def _metrics(trained: Trained, prefix: str) -> dict[str, float]:
    """The metrics of the version's run that begin with a prefix, without it."""
    client = mlflow.MlflowClient(trained.tracking_uri)
    run_id = client.get_model_version("small-unet", trained.version[1:]).run_id
    found = client.get_run(run_id).data.metrics
    return {key.removeprefix(prefix): v for key, v in found.items() if key.startswith(prefix)}


def test_the_test_split_gives_the_metrics_of_the_training(
    trained: Trained, dataset: Path, job: Job, tmp_path: Path
) -> None:
    arguments = (f"--model={trained.model}", f"--dataset={dataset}")
    store = f"--tracking_uri={trained.tracking_uri}"
    done = job("model.evaluate", *arguments, store, f"--report={tmp_path}/new/report.md")
    assert done.returncode == 0, done.stderr
    version = load_manifest(dataset).fingerprint[:12]
    place = done.stdout.splitlines()[-1]
    assert place.endswith(f"/evaluations/small-{version}-test")
    report = (tmp_path / "new/report.md").read_text()
    assert report in done.stderr
    assert "4 images of 48x32, in 4 groups that belong together, fewer than 10" in report
    found = _metrics(trained, f"small-{version}-test/")
    assert found.pop("evaluated") == 1
    assert found == pytest.approx(_metrics(trained, "test_"), abs=1e-6)
    assert f"| mean_iou | {found['mean_iou']:.4f} |" in report
    files = mlflow.artifacts.list_artifacts(place, tracking_uri=trained.tracking_uri)
    names = {Path(one.path).name for one in files}
    assert names == {"evaluation.md", "classes.csv", "confusion.png", "examples.png"}

    again = job("model.evaluate", *arguments, store)
    assert again.stdout == done.stdout
    assert again.stderr.startswith(f"evaluate: nothing has changed: {place}\n{report}")

    (files_of_runs,) = Path(trained.tracking_uri.removeprefix("sqlite:///")).parent.rglob(
        "evaluations"
    )
    shutil.rmtree(files_of_runs)
    repeated = job("model.evaluate", *arguments, store)
    assert (repeated.returncode, repeated.stdout) == (0, done.stdout), repeated.stderr
    assert report in repeated.stderr


def test_the_figures_at_the_frames_size_are_those_of_the_tables(
    trained: Trained, dataset: Path, scenes: Path, job: Job, tmp_path: Path
) -> None:
    store = f"--tracking_uri={trained.tracking_uri}"
    model, out = f"--model={trained.model}", f"--output={tmp_path}"
    precise = ("--engine=tensorflow", "--precision=float32", *IN_MEMORY)
    done = job("beam.infer", model, f"--source={scenes}", out, store, *precise)
    assert done.returncode == 0, done.stderr
    sources = pq.read_table(dataset / SOURCES, columns=["id", "split"]).to_pylist()
    test = {row["id"] for row in sources if row["split"] == "test"}
    masks = pq.read_table(tmp_path / "masks", columns=["image_id", "confusion"]).to_pylist()
    counts = [row["confusion"] for row in masks if row["image_id"] in test]
    assert len(counts) == len(test) == 4
    matrix = ConfusionMatrix(np.sum(counts, axis=0, dtype=np.int64).reshape(13, 13))
    assert matrix.counts.sum() == 4 * 160 * 120
    found = _metrics(trained, "test_frame_")
    assert found == pytest.approx(
        {
            "pixel_accuracy": matrix.pixel_accuracy(),
            "mean_iou": matrix.mean_iou(),
            "frequency_weighted_iou": matrix.frequency_weighted_iou(),
        },
        abs=1e-3,
    )
    # A poor network may be as good at one size as at the other, but hardly to the last digit.
    at_network_size = _metrics(trained, "test_")
    assert found != {name: at_network_size[name] for name in found}


def test_changed_source_files_give_no_frame_metrics(
    trained: Trained, copy: Path, tmp_path: Path, job: Job
) -> None:
    folder = run_ingest(copy, tmp_path / "out", SMALL.model_copy(update={"name": "changed"}))
    rows = pq.read_table(folder / SOURCES).to_pylist()
    path = next(copy / row["mask_path"] for row in rows if row["split"] == "test")
    other = next(copy / row["mask_path"] for row in rows if row["split"] == "train")
    shutil.copy(other, path)
    asked = (f"--model={trained.model}", f"--dataset={folder}")
    done = job("model.evaluate", *asked, f"--tracking_uri={trained.tracking_uri}")
    assert done.returncode == 0, done.stderr
    said = f"evaluate: no figures at the frames' own size: {path} has changed since"
    assert said in done.stderr
    assert "| mean_iou |" in done.stderr
    assert "frame_mean_iou" not in done.stderr
    path.unlink()
    with pytest.raises(FramesMissingError, match=f"{path} cannot be read .No such file"):
        list(frames(str(folder), load_manifest(folder), "test"))


def test_a_dataset_without_test_split_is_evaluated_whole(
    trained: Trained, copy: Path, tmp_path: Path, job: Job
) -> None:
    """A dataset without a test split, of which all images count."""
    for camera in ("CameraRGB", "CameraSeg"):
        for path in sorted((copy / camera).iterdir())[10:]:
            path.unlink()
    config = SMALL.model_copy(update={"name": "other", "validation": 0, "test": 0})
    folder = run_ingest(copy, tmp_path / "out", config)
    asked = (f"--model={trained.model}", f"--dataset={folder}")
    store = f"--tracking_uri={trained.tracking_uri}"
    refused = job("model.evaluate", *asked, store)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "dataset other has no record in test" in refused.stderr
    done = job("model.evaluate", *asked, store, "--split=all")
    assert done.returncode == 0, done.stderr
    assert "10 images of 48x32, in 10 groups that belong together." in done.stderr
    assert "of them are in the train or validation split of a dataset that the" in done.stderr


def test_images_of_another_size_are_resized_as_by_the_inference(
    trained: Trained, scenes: Path, job: Job, tmp_path: Path
) -> None:
    """A network is no good at a size that it was not trained at, so no job runs it there."""
    larger = SMALL.model_copy(update={"name": "larger", "height": 64, "width": 96})
    folder = run_ingest(scenes, tmp_path / "datasets", larger)
    asked = (f"--model={trained.model}", f"--tracking_uri={trained.tracking_uri}")
    done = job("model.evaluate", *asked, f"--dataset={folder}")
    assert done.returncode == 0, done.stderr
    assert "The model was trained on 48x32, to which they are resized for it." in done.stderr
    found = _metrics(trained, f"larger-{load_manifest(folder).fingerprint[:12]}-test/")

    precise = ("--engine=tensorflow", "--precision=float32", *IN_MEMORY)
    for prefix, source in (("", f"--dataset={folder}"), ("frame_", f"--source={scenes}")):
        out = tmp_path / f"{prefix}tables"
        inferred = job("beam.infer", *asked, source, f"--output={out}", *precise)
        assert inferred.returncode == 0, inferred.stderr
        test = {
            row["id"]
            for row in pq.read_table(folder / SOURCES).to_pylist()
            if row["split"] == "test"
        }
        rows = pq.read_table(out / "masks", columns=["image_id", "confusion"]).to_pylist()
        counts = [row["confusion"] for row in rows if row["image_id"] in test]
        matrix = ConfusionMatrix(np.sum(counts, axis=0, dtype=np.int64).reshape(13, 13))
        assert found[f"{prefix}pixel_accuracy"] == pytest.approx(matrix.pixel_accuracy(), abs=1e-3)
        assert found[f"{prefix}mean_iou"] == pytest.approx(matrix.mean_iou(), abs=1e-3)


def test_a_training_whose_run_or_dataset_is_gone_is_not_known(
    trained: Trained, dataset: Path, tmp_path: Path, monkeypatch
) -> None:
    tracking.connect(f"sqlite:///{tmp_path}/mlflow.db")
    client = mlflow.MlflowClient()
    client.create_registered_model("m")
    client.create_model_version("m", str(tmp_path), "0" * 32)
    assert count_seen("models:/m/1", str(dataset), ["test"]) is None

    tracking.connect(trained.tracking_uri)
    assert registry.training_inputs(trained.model) == (str(dataset), "")
    monkeypatch.setattr(registry, "training_inputs", lambda _: (str(tmp_path / "gone"), ""))
    assert count_seen(trained.model, str(dataset), ["test"]) is None


def test_images_whose_training_is_not_known_are_said_to_be(trained: Trained, dataset: Path) -> None:
    from model.evaluation import Evaluation
    from model.reports import evaluation_report

    manifest, matrix = load_manifest(dataset), ConfusionMatrix(np.eye(13, dtype=np.int64))
    found = Evaluation(manifest.taxonomy, matrix.counts[None], matrix, 0.0)
    texts = [
        evaluation_report(trained.model, manifest, found, ["test"], 4, seen, (48, 32))
        for seen in (None, 0, 1)
    ]
    assert ["is not known: its dataset is gone" in text for text in texts] == [True, False, False]
    assert ["**1 of them are in the" in text for text in texts] == [False, False, True]
    assert "resized" not in "".join(texts)


def test_a_model_is_evaluated_without_its_initial_weights(
    trained: Trained, dataset: Path, tmp_path: Path
) -> None:
    file = trained.tracking_uri.removeprefix("sqlite:///")
    tracking.connect(f"sqlite:///{shutil.copy(file, tmp_path)}")
    gone = {"encoder_weights": "/gone.pth", "start_from": "/gone.keras"}
    config = trained.config.model_copy(update=gone | {"architecture": "unet-lite0"})
    mlflow.MlflowClient().set_model_version_tag(
        "small-unet", trained.version[1:], CONFIG_TAG, config.model_dump_json()
    )
    chosen = plan_for_version(trained.model, str(dataset), ["test"])
    assert chosen.config.architecture == "unet-lite0"


def test_missing_models_and_other_classes_are_refused(
    trained: Trained, dataset: Path, scenes: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="models:/none/1"):
        run("models:/none/1", str(dataset), trained.tracking_uri)
    with pytest.raises(UserError, match="there is no such folder"):
        run(trained.model, str(tmp_path / "none"), trained.tracking_uri)
    update = {"taxonomy": "carla-0.9", "name": "newer", "taxonomy_check": "off"}
    newer = run_ingest(scenes, tmp_path, SMALL.model_copy(update=update))
    with pytest.raises(
        UserError, match=r"predicts taxonomy carla-0\.8, but dataset .* holds carla-"
    ):
        run(trained.model, str(newer), trained.tracking_uri)


def test_the_worst_images_are_not_those_of_void_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask whose few known pixels its resizing leaves out has no mean IoU."""
    from model import evaluation

    taxonomy = load_taxonomy("lyft-challenge")
    masks = [np.full((2, 2), value, np.uint8) for value in (VOID, 1, 0, 0, 1, 0, VOID, VOID)]
    pictures = [(np.full((2, 2, 3), at, np.uint8), mask) for at, mask in enumerate(masks)]
    source = SimpleNamespace(pairs=lambda _: iter(pictures))
    always_background = np.zeros((2, 2), np.uint8)
    counts = np.stack([ConfusionMatrix.of(one, always_background, 3).counts for one in masks])
    monkeypatch.setattr(evaluation, "predict", lambda *_: always_background)
    monkeypatch.setattr(evaluation, "panel", lambda rows, *_, **__: rows)

    def drawn(counts):
        found = evaluation.Evaluation(taxonomy, counts, ConfusionMatrix.zero(3), 0.0)
        rows = evaluation.draw_examples(None, source, found, "test")
        return {row.caption.split()[0]: int(row.image[0, 0, 0]) for row in rows}, len(rows)

    # 2, 3 and 5 are right, 1 and 4 wrong.
    assert drawn(counts) == ({"best": 3, "median": 5, "worst": 4}, 5)
    # If nothing is known of any image, some are drawn nevertheless.
    assert drawn(np.zeros_like(counts))[1] == 6


def test_a_damaged_model_is_one_line(trained: Trained, dataset: Path, job: Job) -> None:
    store = Path(trained.tracking_uri.removeprefix("sqlite:///")).parent
    (file,) = store.rglob("*.keras")
    file.write_bytes(file.read_bytes()[:1000])
    # Other tests have evaluated the test split, which would be found.
    asked = (f"--model={trained.model}", f"--dataset={dataset}", "--split=validation")
    done = job("model.evaluate", *asked, f"--tracking_uri={trained.tracking_uri}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(f"error: model file '{file}' cannot be loaded")
    assert "Traceback" not in done.stderr
