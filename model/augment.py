"""Augmentation of whole batches in tf.data: images and masks are transformed together."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from schemas.classes import VOID

_GREY = (0.299, 0.587, 0.114)
"""ITU-R BT.601 luma."""


def augment(images: Any, masks: Any, seed: Any, crop: float, colour: float) -> tuple[Any, Any]:
    """Flips, crops, scales and recolours each image of a batch; the same seed gives the same batch.

    Args:
        images: uint8 (batch, height, width, 3).
        masks: uint8 (batch, height, width, 1).
        seed: int (2,).
        crop: smallest side of a crop as a share of the image's, 1 for none; every crop is scaled
            back to the full size, the image bilinearly, the mask by nearest neighbour.
        colour: largest relative change of brightness, contrast and saturation, 0 for none.

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
    every = tf.range(count)
    pixels = tf.image.crop_and_resize(images, boxes, every, size)
    moved = tf.image.crop_and_resize(
        tf.cast(masks, tf.float32), boxes, every, size, "nearest", extrapolation_value=VOID
    )
    if colour:
        brightness, contrast, saturation = (
            uniform(index, 1 - colour, 1 + colour)[:, None, None, None] for index in (5, 6, 7)
        )
        grey = tf.reduce_sum(pixels * tf.constant(_GREY), axis=-1, keepdims=True)
        pixels = grey + (pixels - grey) * saturation
        mean = tf.reduce_mean(grey, axis=(1, 2), keepdims=True)
        pixels = tf.clip_by_value((mean + (pixels - mean) * contrast) * brightness, 0, 255)
    return pixels, tf.cast(moved, tf.uint8)
