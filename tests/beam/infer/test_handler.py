"""Prediction in batches: only images that fail are lost, and scarce memory halves batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam.infer.engines.base import is_out_of_memory
from beam.infer.handler import predict
from beam.infer.pictures import Picture, Prediction, Unpredicted

POISON, INFINITE = 255, 254

SIZE = (2, 2)
"""Of the images that the engine takes."""


class FakeEngine:
    """Takes class ids from the red channel; fails on some images and on batches too large."""

    def __init__(self, batch_size: int, fits: int, error: Exception | None = None) -> None:
        self.batch_size = batch_size
        self.fits = fits
        self.error = error or ValueError("poison\nand more")
        self.largest: list[int] = []

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        for start in range(0, len(images), self.batch_size):
            part = images[start : start + self.batch_size]
            if self.batch_size > self.fits:
                raise MemoryError("std::bad_alloc")
            if (part == POISON).any():
                raise self.error
            self.largest.append(len(part))
        confidence = np.where(images[..., 0] == INFINITE, np.nan, 0.5).astype(np.float32)
        return images[..., 0], confidence

    def halve_batch(self) -> bool:
        if self.batch_size == 1:
            return False
        self.batch_size //= 2
        return True


def _pictures(values: list[int]) -> list[Picture]:
    return [
        Picture(str(index), "", "", None, 2, 2, np.full((2, 2, 3), value, np.uint8), None, "")
        for index, value in enumerate(values)
    ]


@given(
    st.lists(st.sampled_from([1, 2, 3, POISON, INFINITE]), min_size=1, max_size=20),
    st.sampled_from([1, 2, 4, 16]),
    st.sampled_from([1, 2, 16]),
)
def test_no_image_is_lost(values: list[int], batch_size: int, fits: int) -> None:
    engine = FakeEngine(batch_size, fits)
    found = list(predict(_pictures(values), engine, SIZE))
    assert sorted(int(one.picture.image_id) for one in found) == list(range(len(values)))
    for one in found:
        value = values[int(one.picture.image_id)]
        if value == POISON:
            assert one == Unpredicted(one.picture, "failed", "ValueError: poison")
        elif value == INFINITE:
            assert isinstance(one, Unpredicted)
            assert one.code == "not_finite"
        else:
            assert isinstance(one, Prediction)
            assert (one.class_id == value).all()
    assert engine.batch_size == min(batch_size, fits)


def test_pictures_of_any_size_are_put_together_from_windows() -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (5, 7, 3), np.uint8)
    small, large, bad = (pixels[:1, :1], pixels, pixels.copy())
    bad[4, 6] = POISON
    pictures = [
        Picture(name, "", "", None, *one.shape[1::-1], one, None, "")
        for name, one in {"small": small, "large": large, "bad": bad}.items()
    ]
    found = {one.picture.image_id: one for one in predict(pictures, FakeEngine(4, fits=4), SIZE)}
    assert isinstance(found["bad"], Unpredicted)
    for picture in pictures[:2]:
        one = found[picture.image_id]
        assert isinstance(one, Prediction)
        assert np.array_equal(one.class_id, picture.pixels[..., 0])
        assert one.confidence.shape == picture.pixels.shape[:2]


def test_memory_that_runs_out_halves_later_batches_too() -> None:
    engine = FakeEngine(16, fits=4)
    pictures = _pictures([1] * 16)
    assert len(list(predict(pictures, engine, SIZE))) == 16
    assert engine.batch_size == 4
    assert len(list(predict(pictures, engine, SIZE))) == 16
    assert engine.largest == [4] * 8


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("Exception from cpu: std::bad_alloc"),
        RuntimeError("Exception from src/inference/src/dev/plugin.cpp:54:\ncan't alloc\n"),
        RuntimeError("CUDA OOM"),
    ],
)
def test_an_image_too_large_for_the_memory_is_a_reject(error: Exception) -> None:
    found = list(predict(_pictures([1, POISON, 1]), FakeEngine(4, fits=4, error=error), SIZE))
    codes = {one.picture.image_id: one.code for one in found if isinstance(one, Unpredicted)}
    assert codes == {"1": "out_of_memory"}


def test_other_errors_are_not_taken_for_it() -> None:
    assert not is_out_of_memory(RuntimeError("no room for a zoom of [4, 96, 128]"))
