"""Pixel statistics and confusion matrices, against counting and under addition."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from schemas.classes import VOID
from schemas.stats import ConfusionMatrix, PixelStats

CLASSES = 4
masks = arrays(np.uint8, (6, 8), elements=st.sampled_from([*range(CLASSES), VOID]))
predictions = arrays(np.uint8, (6, 8), elements=st.integers(0, CLASSES - 1))
images = arrays(np.uint8, (6, 8, 3))


@given(masks, predictions)
def test_confusion_matrix_agrees_with_plain_counting(truth, prediction) -> None:
    matrix = ConfusionMatrix.of(truth, prediction, CLASSES)
    known = truth != VOID
    for c in range(CLASSES):
        true, found = (truth == c), (prediction == c) & known
        assert matrix.true_pixels[c] == true.sum()
        assert matrix.intersection[c] == (true & found).sum()
        assert matrix.union[c] == (true | found).sum()
        if found.any():
            assert matrix.precision()[c] == (true & found).sum() / found.sum()
        if true.any():
            assert matrix.recall()[c] == (true & found).sum() / true.sum()
    if known.any():
        weighted = np.nansum(matrix.iou() * matrix.true_pixels) / known.sum()
        assert math.isclose(matrix.frequency_weighted_iou(), weighted)
        assert matrix.pixel_accuracy() == (truth == prediction)[known].mean()
    else:
        assert math.isnan(matrix.pixel_accuracy())


@given(masks, predictions, masks, predictions)
def test_confusion_matrices_add_up(truth_a, found_a, truth_b, found_b) -> None:
    both = ConfusionMatrix.of(np.vstack([truth_a, truth_b]), np.vstack([found_a, found_b]), CLASSES)
    total = ConfusionMatrix.of(truth_a, found_a, CLASSES) + ConfusionMatrix.of(
        truth_b, found_b, CLASSES
    )
    assert np.array_equal(total.counts, both.counts)
    assert np.array_equal((total + ConfusionMatrix.zero(CLASSES)).counts, total.counts)


def test_absent_classes_are_left_out_of_the_mean() -> None:
    truth = np.array([[0, 0, 1, 1]], np.uint8)
    matrix = ConfusionMatrix.of(truth, np.array([[0, 0, 1, 0]], np.uint8), CLASSES)
    assert np.isnan(matrix.iou()[2:]).all()
    assert matrix.mean_iou() == (2 / 3 + 1 / 2) / 2


@given(images, masks, images, masks)
def test_pixel_stats_add_up(image_a, mask_a, image_b, mask_b) -> None:
    one, other = (
        PixelStats.of(image_a, mask_a, CLASSES),
        PixelStats.of(image_b, mask_b, CLASSES),
    )
    total = PixelStats.zero(CLASSES) + one + other
    assert (other + one).to_json() == total.to_json()
    assert PixelStats.from_json(total.to_json()).to_json() == total.to_json()
    pixels = np.concatenate([image_a, image_b]).reshape(-1, 3) / 255
    assert np.allclose(total.channel_mean(), pixels.mean(axis=0))
    assert np.allclose(total.channel_std(), pixels.std(axis=0))
    mask = np.concatenate([mask_a, mask_b])
    assert total.class_pixels.tolist() == [(mask == c).sum() for c in range(CLASSES)]
    assert total.void_pixels == (mask == VOID).sum()
    assert total.upper_pixels.tolist() == [
        (mask_a[:3] == c).sum() + (mask_b[:3] == c).sum() for c in range(CLASSES)
    ]


def test_class_weights_are_median_frequency() -> None:
    first = np.zeros((2, 2), np.uint8)
    second = np.array([[0, 1], [1, 1]], np.uint8)
    image = np.zeros((2, 2, 3), np.uint8)
    stats = PixelStats.of(image, first, 3) + PixelStats.of(image, second, 3)
    # Class 0: 5 of the 8 pixels of both images; class 1: 3 of the 4 of the second.
    median = (5 / 8 + 3 / 4) / 2
    assert np.allclose(stats.class_weights(), [median / (5 / 8), median / (3 / 4), 0])


def test_sums_of_squares_do_not_overflow_64_bits() -> None:
    """With as many pixels as 1.4 billion images of 800x600."""
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (60, 80, 3), np.uint8)
    one = PixelStats.of(image, random.integers(0, 13, (60, 80), np.uint8), 13)
    many = one
    for _ in range(37):
        many += many
    assert max(many.channel_square_sum) > np.iinfo(np.int64).max
    assert many.channel_std() == pytest.approx(image.reshape(-1, 3).std(axis=0) / 255)
    again = PixelStats.from_json(json.loads(json.dumps(many.to_json())))
    assert again.to_json() == (many + PixelStats.zero(13)).to_json()
    assert again.channel_std() == many.channel_std()
