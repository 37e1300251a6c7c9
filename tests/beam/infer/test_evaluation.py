"""Confusion matrices of the inference job equal the training's metrics and the class statistics."""

from pathlib import Path

import apache_beam as beam
import duckdb
import numpy as np
import pytest
from apache_beam.testing.util import assert_that
from inference import run_infer
from jobs import IN_MEMORY

from beam.infer.evaluation import sum_matrices
from beam.runners.run import pipeline_options
from schemas.classes import load_taxonomy
from schemas.config import InferConfig
from schemas.stats import ConfusionMatrix

CLASSES = 13


@pytest.fixture(scope="module")
def output(trained, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of the small dataset."""
    # The engine used in training, since OpenVINO's sums differ in the last digits.
    config = InferConfig(engine="tensorflow", precision="float32")
    return run_infer(trained, tmp_path_factory.mktemp("predictions"), config, dataset=dataset)


def _query(output: Path, table: str, sql: str) -> list[tuple]:
    return duckdb.sql(f"FROM '{output}/{table}/**/*.parquet' {sql}").fetchall()


def _matrix(output: Path, split: str) -> ConfusionMatrix:
    rows = _query(
        output,
        "confusion",
        f"SELECT pixel_count WHERE split = '{split}' ORDER BY true_class_id, predicted_class_id",
    )
    assert len(rows) == CLASSES * CLASSES
    return ConfusionMatrix(np.array(rows, np.int64).reshape(CLASSES, CLASSES))


def test_the_job_finds_the_metrics_of_the_training(trained, output: Path) -> None:
    import mlflow

    mlflow.set_tracking_uri(trained.tracking_uri)
    version = mlflow.MlflowClient().get_model_version(*trained.model[8:].split("/"))
    metrics = mlflow.get_run(version.run_id).data.metrics
    matrix = _matrix(output, "test")
    assert matrix.pixel_accuracy() == metrics["test_pixel_accuracy"]
    assert matrix.mean_iou() == metrics["test_mean_iou"]
    assert matrix.frequency_weighted_iou() == metrics["test_frequency_weighted_iou"]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_matrix_is_the_sum_of_the_images_and_of_the_class_rows(output, split: str) -> None:
    matrix = _matrix(output, split)
    images = _query(output, "masks", f"SELECT confusion, pixel_accuracy WHERE split = '{split}'")
    counts = np.array([confusion for confusion, _ in images], np.int64)
    assert np.array_equal(counts.sum(axis=0), matrix.counts.ravel())
    for confusion, accuracy in zip(counts, (accuracy for _, accuracy in images), strict=True):
        assert confusion.reshape(CLASSES, CLASSES).trace() / confusion.sum() == accuracy
    stats = _query(
        output,
        "class_stats",
        'SELECT sum(intersection), sum("union"), sum(true_pixel_count)'
        f" WHERE split = '{split}' GROUP BY class_id ORDER BY class_id",
    )
    intersection, union, true = np.array(stats, np.int64).T
    assert np.array_equal(matrix.intersection, intersection)
    assert np.array_equal(matrix.union, union)
    assert np.array_equal(matrix.true_pixels, true)


def test_cells_bear_the_names_of_their_classes(output: Path) -> None:
    names = dict(enumerate(load_taxonomy("carla-0.8").names))
    rows = _query(
        output,
        "confusion",
        "SELECT DISTINCT true_class_id, true_class_name, predicted_class_id, predicted_class_name",
    )
    assert len(rows) == CLASSES * CLASSES
    for true, true_name, predicted, predicted_name in rows:
        assert (true_name, predicted_name) == (names[true], names[predicted])


def test_classes_have_the_colours_of_the_masks(output: Path) -> None:
    taxonomy = load_taxonomy("carla-0.8")
    rows = _query(output, "classes", "ORDER BY class_id")
    runs = _query(output, "runs", "SELECT run_id, model, version, source")
    assert [row[:5] for row in rows] == [
        (c.id, c.name, "#" + bytes(c.colour).hex(), taxonomy.name, taxonomy.sha256)
        for c in taxonomy.classes
    ]
    keys = _query(output, "classes", "SELECT DISTINCT run_id, model, version, source")
    assert keys == runs


def test_without_truth_there_is_no_matrix(trained, scenes: Path, tmp_path: Path) -> None:
    output = run_infer(trained, tmp_path, source=scenes / "CameraRGB")
    assert _query(output, "confusion", "SELECT count(*)") == [(0,)]
    assert _query(output, "masks", "SELECT count(*), count(confusion)") == [(40, 0)]
    assert _query(output, "classes", "SELECT count(*)") == [(CLASSES,)]


def test_raw_pngs_with_truth_have_one_matrix_without_a_split(trained, scenes, tmp_path) -> None:
    output = run_infer(trained, tmp_path, source=scenes)
    assert _query(output, "confusion", "SELECT split, count(*), sum(pixel_count) GROUP BY ALL") == [
        (None, CLASSES * CLASSES, 40 * 160 * 120)
    ]


def test_the_combiner_is_the_plain_sum() -> None:
    random = np.random.default_rng(0)
    matrices = [ConfusionMatrix(random.integers(0, 1 << 40, (3, 3))) for _ in range(20)]
    expected = sum(matrices, ConfusionMatrix.zero(3))

    def check(sums) -> None:
        ((split, matrix),) = sums
        assert split == "test"
        assert np.array_equal(matrix.counts, expected.counts)

    with beam.Pipeline(options=pipeline_options(IN_MEMORY)) as root:
        sums = (
            root
            | beam.Create([("test", matrix) for matrix in matrices])
            | beam.CombinePerKey(sum_matrices, 3)
        )
        assert_that(sums, check)
