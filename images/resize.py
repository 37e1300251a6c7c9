"""Resizes images and masks, and picks the pixels that Pillow picks."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from schemas.classes import UInt8Array
from schemas.config import Resize

Pixels = TypeVar("Pixels", bound=npt.NDArray[np.uint8 | np.float32])


def resize_nearest(pixels: Pixels, height: int, width: int) -> Pixels:
    """Nearest-neighbour resize of (h, w) or (h, w, channels); picks the same pixels as Pillow."""
    source_height, source_width = pixels.shape[:2]
    if (source_height, source_width) == (height, width):
        return pixels
    rows, columns = _nearest_index(source_height, height), _nearest_index(source_width, width)
    # Rows first: they are copied whole, and fewer are left to pick columns from.
    return cast("Pixels", pixels.take(rows, axis=0).take(columns, axis=1))


def resize_image(pixels: UInt8Array, height: int, width: int, method: Resize) -> UInt8Array:
    """Resizes an RGB image (h, w, 3); bilinear and area are Pillow's, with antialiasing."""
    if method == "nearest" or pixels.shape[:2] == (height, width):
        return resize_nearest(pixels, height, width)
    resample = Image.Resampling.BILINEAR if method == "bilinear" else Image.Resampling.BOX
    return np.asarray(Image.fromarray(pixels).resize((width, height), resample))


@lru_cache(maxsize=16)
def nearest_counts(shape: tuple[int, int], size: tuple[int, int]) -> npt.NDArray[np.int64]:
    """How often a nearest-neighbour resize to ``size`` picks each pixel of ``shape``; (h, w)."""
    if shape == size:
        # One value in memory: frames that keep their size may be large, and several are cached.
        return np.broadcast_to(np.int64(1), shape)
    sides = zip(shape, size, strict=True)
    rows, columns = (np.bincount(_nearest_index(old, new), minlength=old) for old, new in sides)
    counts: npt.NDArray[np.int64] = np.outer(rows, columns)
    return counts


@lru_cache(maxsize=256)
def _nearest_index(old: int, new: int) -> npt.NDArray[np.intp]:
    # As Pillow does, accumulate the step: its rounding decides between two pixels.
    steps = np.full(new, old / new)
    steps[0] *= 0.5
    return np.minimum(np.cumsum(steps).astype(np.intp), old - 1)
