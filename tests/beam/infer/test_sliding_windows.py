"""Sliding windows cover each pixel once, well inside of a window."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from beam.infer.sliding_windows import cut, join, spans


@given(st.integers(1, 3000), st.integers(1, 600))
def test_every_pixel_belongs_to_one_window_and_lies_well_inside_it(size: int, window: int) -> None:
    found = spans(size, window)
    assert [0, *(one.end for one in found)] == [*(one.first for one in found), size]
    for one in found:
        assert 0 <= one.start <= one.first < one.end <= one.start + window
        assert one.start + window <= max(size, window)
        # No closer than an eighth of the window to a border that is not the image's own.
        assert one.first == 0 or one.first - one.start >= window // 8
        assert one.end == size or one.start + window - one.end >= window // 8


@given(st.tuples(st.integers(1, 70), st.integers(1, 70)), st.integers(1, 40), st.integers(1, 40))
def test_what_windows_show_is_the_image(shape: tuple[int, int], height: int, width: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    windows = cut(image, height, width)
    assert windows.shape[1:] == (height, width, 3)
    assert np.array_equal(join(windows[..., 0], image.shape), image[..., 0])


def test_a_small_image_is_mirrored() -> None:
    image = np.arange(6, dtype=np.uint8).reshape(2, 3, 1).repeat(3, axis=2)
    (window,) = cut(image, 3, 5)
    assert window[..., 0].tolist() == [[0, 1, 2, 2, 1], [3, 4, 5, 5, 4], [3, 4, 5, 5, 4]]
