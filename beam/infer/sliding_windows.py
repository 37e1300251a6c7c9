"""Sliding windows of a network's size over an image of any size.

Each pixel takes the result of the window in which it is farthest from the border, where a network
has the least context: the overlap-tile strategy of Ronneberger et al., "U-Net: Convolutional
Networks for Biomedical Image Segmentation", 2015.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.classes import UInt8Array

_OVERLAP = 1 / 4
"""Minimum overlap of two neighbouring windows, as a share of a window's side."""


class Span(NamedTuple):
    """A window along one axis: where it starts, and the range of pixels that take its result."""

    start: int
    first: int
    end: int


def spans(size: int, window: int) -> list[Span]:
    """Windows that cover ``size`` pixels along one axis; a single one if the image is no larger."""
    if size <= window:
        return [Span(0, 0, size)]
    step = window - int(window * _OVERLAP)
    count = 1 + -(-(size - window) // max(1, step))
    starts = [round(start) for start in np.linspace(0, size - window, count)]
    borders = [(before + window + after) // 2 for before, after in pairwise(starts)]
    return list(map(Span, starts, [0, *borders], [*borders, size]))


def cut(image: UInt8Array, height: int, width: int) -> UInt8Array:
    """The windows of an image (h, w, 3), uint8 (n, height, width, 3), row by row.

    A smaller image is padded by mirroring.
    """
    for axis, side in enumerate((height, width)):
        if (missing := side - image.shape[axis]) > 0:
            mirrored = np.pad(np.arange(image.shape[axis]), (0, missing), mode="symmetric")
            image = image.take(mirrored, axis=axis)
    return np.stack(
        [
            image[row.start : row.start + height, column.start : column.start + width]
            for row, column in _grid(image.shape, height, width)
        ]
    )


def join(windows: npt.NDArray[Any], shape: Sequence[int]) -> npt.NDArray[Any]:
    """Joins the results of an image's windows (n, height, width) to one array (h, w).

    Args:
        shape: of the image, (h, w, …).
    """
    _, height, width = windows.shape
    joined = np.empty(tuple(shape[:2]), windows.dtype)
    for window, (row, column) in zip(windows, _grid(shape, height, width), strict=True):
        joined[row.first : row.end, column.first : column.end] = window[
            row.first - row.start : row.end - row.start,
            column.first - column.start : column.end - column.start,
        ]
    return joined


def _grid(shape: Sequence[int], height: int, width: int) -> Iterator[tuple[Span, Span]]:
    return product(spans(shape[0], height), spans(shape[1], width))
