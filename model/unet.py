"""U-Net for semantic segmentation, same-padded, as the Lyft notebooks build it.

Source: Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image
Segmentation", 2015; with padding, He initialisation and dropout in the deepest blocks.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

DEPTH = 4
"""Poolings, so that height and width must be multiples of 2**4."""


def unet(classes: int, filters: int = 32, dropout: float = 0.3) -> keras.Model:
    """Builds the network.

    Args:
        classes: number of classes, the channels of the logits.
        filters: channels of the first block; each pooling doubles them.
        dropout: rate after the two deepest blocks of the encoder.

    Returns:
        A model from RGB (batch, height, width, 3), uint8 or float, 0 to 255, height and width
        multiples of 16, to float32 logits (batch, height, width, classes).
        8,640,141 parameters for 13 classes and 32 filters.
    """
    inputs = keras.Input((None, None, 3), name="image")
    x = layers.Rescaling(1 / 255, name="rescale")(inputs)

    skips = []
    for level in range(DEPTH):
        x = _block(x, filters << level, f"down{level}")
        if level == DEPTH - 1:
            x = layers.Dropout(dropout, name=f"down{level}_dropout")(x)
        skips.append(x)
        x = layers.MaxPooling2D(name=f"down{level}_pool")(x)

    x = _block(x, filters << DEPTH, "bottom")
    x = layers.Dropout(dropout, name="bottom_dropout")(x)

    for level in reversed(range(DEPTH)):
        x = layers.Conv2DTranspose(
            filters << level, 3, strides=2, padding="same", name=f"up{level}_upsample"
        )(x)
        x = layers.Concatenate(name=f"up{level}_skip")([x, skips[level]])
        x = _block(x, filters << level, f"up{level}")

    x = _convolution(x, filters, "head")
    logits = layers.Conv2D(classes, 1, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name="unet")


def _block(x: Any, filters: int, name: str) -> Any:
    x = _convolution(x, filters, f"{name}_conv1")
    return _convolution(x, filters, f"{name}_conv2")


def _convolution(x: Any, filters: int, name: str) -> Any:
    return layers.Conv2D(
        filters, 3, padding="same", activation="relu", kernel_initializer="he_normal", name=name
    )(x)
