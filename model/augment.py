"""Data augmentation of batches in tf.data: images and masks are transformed together."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from schemas.classes import VOID

_GREY = (0.299, 0.587, 0.114)
"""ITU-R BT.601 luma."""

_GAMMA, _TINT, _HAZE, _NOISE = 0.4, 0.2, 0.3, 8.0
"""Bounds with ``weather`` 1: logarithm of the exponent, relative change of red and blue (half of it
for green), share of a grey haze, standard deviation of noise."""

_HAZE_GREYS = (80.0, 255.0)


def augment(
    images: Any, masks: Any, seed: Any, crop: float, colour: float, weather: float = 0.0
) -> tuple[Any, Any]:
    """Flips, crops, scales and recolours each image of a batch; the same seed gives the same batch.

    Args:
        images: uint8 (batch, height, width, 3).
        masks: uint8 (batch, height, width, 1).
        seed: int (2,).
        crop: smallest side of a crop as a share of the image's, 1 for none; every crop is scaled
            back to the full size, the image bilinearly, the mask by nearest neighbour.
        colour: largest relative change of brightness, contrast and saturation, 0 for none.
        weather: how much light, air and camera change, from 0 to 1: gamma, tint, haze, blur, noise.

    Returns:
        Images, float32, 0 to 255, and masks, uint8.
    """
    size = tf.shape(images)[1:3]
    count = tf.shape(images)[0]

    def uniform(index: int, low: float, high: float) -> Any:
        key = tf.random.fold_in(seed, index)
        return tf.random.stateless_uniform((count,), key, low, high)

    height, width = uniform(0, crop, 1), uniform(1, crop, 1)
    top, left = uniform(2, 0, 1) * (1 - height), uniform(3, 0, 1) * (1 - width)
    right = left + width
    # A box with left and right swapped mirrors its crop.
    flip = uniform(4, 0, 1) < 0.5
    boxes = tf.stack(
        [top, tf.where(flip, right, left), top + height, tf.where(flip, left, right)], axis=-1
    )
    box_images = tf.range(count)
    pixels = tf.image.crop_and_resize(images, boxes, box_images, size)
    cropped = tf.image.crop_and_resize(
        tf.cast(masks, tf.float32), boxes, box_images, size, "nearest", extrapolation_value=VOID
    )
    if colour:
        brightness, contrast, saturation = (
            uniform(index, 1 - colour, 1 + colour)[:, None, None, None] for index in (5, 6, 7)
        )
        grey = tf.reduce_sum(pixels * tf.constant(_GREY), axis=-1, keepdims=True)
        pixels = grey + (pixels - grey) * saturation
        mean = tf.reduce_mean(grey, axis=(1, 2), keepdims=True)
        pixels = tf.clip_by_value((mean + (pixels - mean) * contrast) * brightness, 0, 255)
    if weather:
        pixels = _change_weather(pixels, seed, weather, uniform)
    return pixels, tf.cast(cropped, tf.uint8)


def _change_weather(pixels: Any, seed: Any, strength: float, uniform: Any) -> Any:
    """Images (batch, height, width, 3), 0 to 255, under other light, through other air and lens."""

    def around_one(index: int, most: float) -> Any:
        return uniform(index, 1 - strength * most, 1 + strength * most)

    gamma = tf.exp(uniform(8, -strength * _GAMMA, strength * _GAMMA))
    tint = tf.stack([around_one(9, _TINT), around_one(10, _TINT / 2), around_one(11, _TINT)], -1)
    haze, grey = uniform(12, 0, strength * _HAZE), uniform(13, *_HAZE_GREYS)
    # A lookup table of 256 levels is far less work than a power for each pixel.
    levels = tf.minimum(tint[..., None] * tf.range(256.0) / 255, 1)
    clear = 255 * levels ** gamma[:, None, None]
    hazy = clear + (grey[:, None, None] - clear) * haze[:, None, None]
    index = tf.cast(tf.round(pixels), tf.int32) + 256 * tf.range(3)
    pixels = tf.gather(tf.reshape(hazy, (-1, 3 * 256)), index, batch_dims=1)

    blur = uniform(14, 0, strength)[:, None, None, None]
    pixels += (tf.nn.avg_pool2d(pixels, 3, 1, "SAME") - pixels) * blur
    deviation = uniform(15, 0, strength * _NOISE)[:, None, None, None]
    noise = tf.random.stateless_normal(tf.shape(pixels), tf.random.fold_in(seed, 16))
    return tf.clip_by_value(pixels + deviation * noise, 0, 255)
