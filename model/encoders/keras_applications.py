"""Encoders from ``keras.applications``, with weights from ImageNet or a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras

from model.encoders.lite import ENCODER
from runtime.errors import UserError, first_line

_PROBE = 224
"""Side of an image for which the networks' features have five different sizes."""


def encoder(name: str) -> keras.Model:
    """A network from RGB (batch, height, width, 3), 0 to 255, to its features, finest first.

    Each is the output of the last layer of its size: 1/2 (which ConvNeXt lacks), 1/4, 1/8, 1/16 and
    1/32 of the images'.

    Args:
        name: of a network of ``keras.applications``, e.g. MobileNetV2.
    """
    images = keras.Input((None, None, 3), name="image")
    network = _network(name, None, (None, None, 3))
    probe = _network(name, None, (_PROBE, _PROBE, 3))
    last_of_size = {}
    for index, layer in enumerate(probe.layers):
        shape: tuple[int, ...] = tuple(getattr(layer.output, "shape", ()))
        if len(shape) == 4:
            last_of_size[shape[1]] = index
    sizes = (_PROBE >> halvings for halvings in range(1, 6))
    indices = (last_of_size[size] for size in sizes if size in last_of_size)
    backbone = keras.Model(network.inputs, [network.layers[index].output for index in indices])
    return keras.Model(images, backbone(_prepared(images, name)), name=ENCODER)


def load(encoder: keras.Model, name: str, path: Path | None) -> None:
    """Loads weights from a file of ``keras.applications``, or those from ImageNet.

    Args:
        path: None for those from ImageNet, which Keras downloads, or finds in its cache.

    Raises:
        UserError: they cannot be had, or are of another network.
    """
    weights = str(path) if path else "imagenet"
    if not path:
        print(f"train: Keras fetches the weights of {name}, or has them", file=sys.stderr)
    try:
        encoder.set_weights(_network(name, weights, (None, None, 3)).get_weights())
    except Exception as error:
        # Keras raises a plain Exception if it cannot download, and many types for bad files.
        raise UserError(
            f"encoder_weights {weights!r} of {name} cannot be had: {first_line(error)}; name a "
            "file that keras.applications published, or --encoder_weights none"
        ) from error


def _network(name: str, weights: str | None, shape: tuple[int | None, int | None, int]) -> Any:
    return getattr(keras.applications, name)(include_top=False, weights=weights, input_shape=shape)


def _prepared(images: Any, name: str) -> Any:
    """Images on the scale that a network was trained with; most networks scale by themselves."""
    module = sys.modules[getattr(keras.applications, name).__module__]
    return module.preprocess_input(keras.ops.cast(images, "float32"))
