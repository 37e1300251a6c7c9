"""Resizing of images and masks, against Pillow."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from images.resize import nearest_counts, resize_image, resize_nearest

sizes = st.tuples(st.integers(1, 24), st.integers(1, 24))
rgb = sizes.flatmap(lambda size: arrays(np.uint8, (*size, 3)))


@given(rgb, st.tuples(st.integers(1, 100), st.integers(1, 100)))
def test_nearest_neighbour_equals_pillows(pixels, size) -> None:
    height, width = size
    theirs = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
    assert np.array_equal(resize_nearest(pixels, height, width), np.asarray(theirs))
    assert np.array_equal(resize_nearest(pixels[..., 0], height, width), np.asarray(theirs)[..., 0])


def test_other_resizing() -> None:
    halves = np.zeros((4, 4, 3), np.uint8)
    halves[:, 1::2] = 100
    assert (resize_image(halves, 2, 2, "area") == 50).all()
    assert resize_image(halves, 8, 8, "bilinear").shape == (8, 8, 3)
    assert set(np.unique(resize_image(halves, 3, 3, "nearest"))) <= {0, 100}


def test_counts_of_frames_that_keep_their_size_take_no_memory() -> None:
    counts = nearest_counts((6000, 8000), (6000, 8000))
    assert counts.shape == (6000, 8000)
    assert counts.strides == (0, 0)
    assert counts[0, 0] == 1
