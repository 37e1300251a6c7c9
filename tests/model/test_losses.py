"""Losses and metrics against plain numpy, Keras and scikit-learn."""

import numpy as np
import pytest

from schemas.classes import VOID
from schemas.stats import ConfusionMatrix


@pytest.fixture(scope="module")
def segmentation_loss() -> type:
    from model.losses import SegmentationLoss

    return SegmentationLoss


def _batch(classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Truth with void (2, 6, 5, 1) and logits (2, 6, 5, classes); the last class never occurs."""
    random = np.random.default_rng(3)
    truth = random.choice([*range(classes - 1), VOID], (2, 6, 5, 1)).astype(np.uint8)
    return truth, random.normal(size=(2, 6, 5, classes)).astype(np.float32)


def _reference(truth: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Truth and class probabilities of the pixels that are not void, with plain numpy."""
    known = truth[..., 0] != VOID
    exponents = np.exp(logits[known].astype(np.float64))
    return truth[..., 0][known], exponents / exponents.sum(axis=-1, keepdims=True)


def test_cross_entropy_is_the_mean_over_known_pixels(segmentation_loss) -> None:
    import keras

    truth, logits = _batch()
    true, p = _reference(truth, logits)
    expected = -np.log(p[np.arange(len(true)), true]).mean()
    assert float(segmentation_loss()(truth, logits)) == pytest.approx(expected, rel=1e-5)
    theirs = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=VOID)
    assert float(segmentation_loss()(truth, logits)) == pytest.approx(
        float(theirs(truth, logits)), rel=1e-5
    )


def test_class_weights_weigh_pixels_and_keep_the_scale(segmentation_loss) -> None:
    truth, logits = _batch()
    true, p = _reference(truth, logits)
    weights = np.array([1.0, 5.0, 0.5, 7.0])
    each = -np.log(p[np.arange(len(true)), true])
    expected = (weights[true] * each).sum() / weights[true].sum()
    assert float(segmentation_loss(weights)(truth, logits)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("adjustment", [0, 0.5, 1])
def test_adjusted_logits_are_without_a_share_of_the_weights(segmentation_loss, adjustment) -> None:
    """A network of nothing but biases is at its optimum where the docstring says it is."""
    import tensorflow as tf

    truth = np.repeat(np.uint8([0, 1, 2]), [60, 30, 10]).reshape(1, 10, 10, 1)
    weights = np.array([0.5, 1.0, 3.0, 0.0])
    shares = np.array([0.6, 0.3, 0.1])
    best = np.append(np.log(shares) + (1 - adjustment) * np.log(weights[:3]), -30)
    bias = tf.Variable(best.astype(np.float32))
    loss_of = segmentation_loss(weights, adjustment)

    def loss() -> tf.Tensor:
        return loss_of(truth, tf.zeros((1, 10, 10, 4)) + bias)

    with tf.GradientTape() as tape:
        lowest = loss()
    np.testing.assert_allclose(tape.gradient(lowest, bias), 0, atol=1e-6)
    bias.assign_add([0, 0, 0.1, 0])
    assert loss() > lowest


@pytest.mark.parametrize(("extra", "alpha"), [("dice", 0.5), ("tversky", 0.3)])
def test_overlap_losses_average_the_classes_in_the_truth(segmentation_loss, extra, alpha) -> None:
    truth, logits = _batch()
    true, p = _reference(truth, logits)
    terms = []
    for class_id in range(3):
        of_class = true == class_id
        hits = p[of_class, class_id].sum()
        wrong, missed = p[~of_class, class_id].sum(), (1 - p[of_class, class_id]).sum()
        terms.append(1 - (hits + 1) / (hits + alpha * wrong + (1 - alpha) * missed + 1))
    added = segmentation_loss(extra=extra, extra_weight=2.0)(truth, logits)
    plain = segmentation_loss()(truth, logits)
    assert float(added - plain) == pytest.approx(2 * np.mean(terms), rel=1e-4)


def test_focal_loss_weighs_down_confident_pixels(segmentation_loss) -> None:
    truth, logits = _batch()
    true, p = _reference(truth, logits)
    confident = p[np.arange(len(true)), true]
    expected = (-((1 - confident) ** 2) * np.log(confident)).mean()
    added = segmentation_loss(extra="focal")(truth, logits) - segmentation_loss()(truth, logits)
    assert float(added) == pytest.approx(expected, rel=1e-4)


def test_one_logit_is_binary_cross_entropy(segmentation_loss) -> None:
    import keras

    random = np.random.default_rng(0)
    truth = random.integers(0, 2, (2, 4, 4, 1)).astype(np.uint8)
    logits = random.normal(size=(2, 4, 4, 1)).astype(np.float32)
    theirs = keras.losses.BinaryCrossentropy(from_logits=True)(truth.astype(np.float32), logits)
    assert float(segmentation_loss()(truth, logits)) == pytest.approx(float(theirs), rel=1e-5)


def test_a_batch_of_void_alone_has_no_loss_and_finite_gradients(segmentation_loss) -> None:
    import tensorflow as tf

    truth = np.full((1, 2, 2, 1), VOID, np.uint8)
    logits = tf.Variable(np.ones((1, 2, 2, 3), np.float32))
    with tf.GradientTape() as tape:
        loss = segmentation_loss(extra="dice")(truth, logits)
    assert np.isfinite(tape.gradient(loss, logits)).all()
    assert float(loss) == pytest.approx(1.0)


@pytest.mark.parametrize("channels", [5, 1])
def test_metrics_agree_with_the_confusion_matrix(channels: int) -> None:
    from model.metrics import SegmentationMetrics

    classes = max(channels, 2)
    random = np.random.default_rng(0)
    metric = SegmentationMetrics(classes)
    total = ConfusionMatrix.zero(classes)
    for _ in range(3):
        truth = random.choice([0, 1, VOID], (2, 8, 6)).astype(np.uint8)
        logits = random.normal(size=(2, 8, 6, channels)).astype(np.float32)
        if channels > 1:
            # This class is never in the truth or the prediction.
            logits[..., 4] = -100
        found = logits[..., 0] > 0 if channels == 1 else logits.argmax(-1)
        metric.update_state(truth[..., None], logits)
        total += ConfusionMatrix.of(truth, found.astype(np.uint8), classes)
    assert np.array_equal(metric.matrix, total.counts)
    result = metric.result()
    assert float(result["pixel_accuracy"]) == pytest.approx(total.pixel_accuracy())
    assert float(result["mean_iou"]) == pytest.approx(total.mean_iou())


def test_the_confusion_matrix_agrees_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(1)
    truth = random.integers(0, 4, 500).astype(np.uint8)
    found = random.integers(0, 4, 500).astype(np.uint8)
    matrix = ConfusionMatrix.of(truth, found, 4)
    assert np.array_equal(matrix.counts, metrics.confusion_matrix(truth, found))
    assert matrix.iou() == pytest.approx(metrics.jaccard_score(truth, found, average=None))
    assert matrix.precision() == pytest.approx(metrics.precision_score(truth, found, average=None))
    assert matrix.recall() == pytest.approx(metrics.recall_score(truth, found, average=None))
    assert matrix.frequency_weighted_iou() == pytest.approx(
        metrics.jaccard_score(truth, found, average="weighted")
    )
