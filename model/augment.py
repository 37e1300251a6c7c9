"""Data augmentation of batches: images and masks are transformed together, on any backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from keras import ops

from model.backend import standard_normal
from schemas.config import TrainConfig

_GREY = np.array((0.299, 0.587, 0.114), np.float32)
"""ITU-R BT.601 luma."""

_GAMMA, _TINT, _HAZE, _NOISE = 0.4, 0.2, 0.3, 8.0
"""Bounds with ``weather`` 1: logarithm of the exponent, relative change of red and blue (half of it
for green), share of a grey haze, standard deviation of noise."""

_HAZE_GREYS = (80.0, 255.0)

_DRAWS = 16

Draws = tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]
"""Uniform numbers in [0, 1) of each image, (batch, 16), and the key of the noise, (2,)."""


def draw(seed: int, epoch: int, step: int, count: int) -> Draws:
    """The random numbers for one batch; the same arguments give the same numbers anywhere."""
    random = np.random.default_rng([seed, epoch, step])
    key = random.integers(0, 1 << 31, 2, np.int32)
    return random.random((count, _DRAWS), np.float32), key


def augment(images: Any, masks: Any, draws: Draws, config: TrainConfig) -> tuple[Any, Any]:
    """Flips, crops, scales and recolours each image of a batch, by the configured bounds.

    Each crop is scaled back to the full size, the image bilinearly, the mask by nearest neighbour.

    Args:
        images: uint8 (batch, height, width, 3).
        masks: uint8 (batch, height, width, 1).

    Returns:
        Images, float32, 0 to 255, and masks, uint8.
    """
    numbers, key = draws

    def uniform(index: int, low: float, high: float) -> Any:
        return low + (high - low) * numbers[:, index]

    height, width = uniform(0, config.crop, 1), uniform(1, config.crop, 1)
    top, left = uniform(2, 0, 1) * (1 - height), uniform(3, 0, 1) * (1 - width)
    right = left + width
    flip = numbers[:, 4] < 0.5
    rows = _positions(top, top + height, images.shape[1])
    # From right to left, they mirror the crop.
    columns = _positions(
        ops.where(flip, right, left), ops.where(flip, left, right), images.shape[2]
    )
    pixels = _bilinear(ops.cast(images, "float32"), rows, columns)
    if config.colour:
        pixels = _recolour(pixels, config.colour, uniform)
    if config.weather:
        pixels = _change_weather(pixels, config.weather, uniform, key)
    return pixels, _nearest(masks, rows, columns)


def _positions(first: Any, last: Any, size: int) -> Any:
    """Where to sample one side of a crop, in pixels, float32 (batch, size).

    Args:
        first, last: the crop's ends as shares of the side, (batch,).
    """
    steps = np.linspace(0, 1, size, dtype=np.float32)
    shares = first[:, None] + (last - first)[:, None] * steps
    return ops.clip(shares, 0, 1) * (size - 1)


def _bilinear(images: Any, rows: Any, columns: Any) -> Any:
    """Images sampled at the given positions: a product with a matrix of weights for each side."""

    def weights(positions: Any) -> Any:
        pixels = np.arange(positions.shape[1], dtype=np.float32)
        return ops.relu(1 - ops.abs(positions[..., None] - pixels))

    sampled = ops.einsum("bih,bhwc->biwc", weights(rows), images)
    return ops.einsum("bjw,biwc->bijc", weights(columns), sampled)


def _nearest(masks: Any, rows: Any, columns: Any) -> Any:
    _, height, width, _ = masks.shape
    rows, columns = (ops.cast(ops.round(side), "int32") for side in (rows, columns))
    index = ops.reshape(rows[:, :, None] * width + columns[:, None, :], (-1, height * width))
    picked = ops.take_along_axis(ops.reshape(masks, (-1, height * width)), index, axis=1)
    return ops.reshape(picked, (-1, height, width, 1))


def _recolour(pixels: Any, strength: float, uniform: Any) -> Any:
    """Images (batch, height, width, 3), 0 to 255, of another brightness, contrast, saturation."""
    brightness, contrast, saturation = (
        uniform(index, 1 - strength, 1 + strength)[:, None, None, None] for index in (5, 6, 7)
    )
    grey = ops.sum(pixels * _GREY, axis=-1, keepdims=True)
    pixels = grey + (pixels - grey) * saturation
    mean = ops.mean(grey, axis=(1, 2), keepdims=True)
    return ops.clip((mean + (pixels - mean) * contrast) * brightness, 0, 255)


def _change_weather(pixels: Any, strength: float, uniform: Any, key: Any) -> Any:
    """Images (batch, height, width, 3), 0 to 255, under other light, through other air and lens."""

    def around_one(index: int, most: float) -> Any:
        return uniform(index, 1 - strength * most, 1 + strength * most)

    gamma = ops.exp(uniform(8, -strength * _GAMMA, strength * _GAMMA))
    tint = ops.stack([around_one(9, _TINT), around_one(10, _TINT / 2), around_one(11, _TINT)], -1)
    haze, grey = uniform(12, 0, strength * _HAZE), uniform(13, *_HAZE_GREYS)
    # A lookup table of 256 levels is far less work than a power for each pixel.
    levels = ops.minimum(tint[..., None] * (np.arange(256, dtype=np.float32) / 255), 1)
    clear = 255 * levels ** gamma[:, None, None]
    hazy = clear + (grey[:, None, None] - clear) * haze[:, None, None]
    index = ops.cast(ops.round(pixels), "int32") + 256 * np.arange(3, dtype=np.int32)
    tables = ops.reshape(hazy, (-1, 3 * 256))
    looked_up = ops.take_along_axis(tables, ops.reshape(index, (ops.shape(index)[0], -1)), axis=1)
    pixels = ops.reshape(looked_up, ops.shape(pixels))

    blur = uniform(14, 0, strength)[:, None, None, None]
    pixels += (ops.average_pool(pixels, 3, 1, "same") - pixels) * blur
    deviation = uniform(15, 0, strength * _NOISE)[:, None, None, None]
    return ops.clip(pixels + deviation * standard_normal(ops.shape(pixels), key), 0, 255)
