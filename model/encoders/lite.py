"""EfficientNet-Lite0, an encoder with weights from ImageNet.

Source: github.com/tensorflow/tpu, models/official/efficientnet/lite: EfficientNet-B0 (Tan and Le,
"EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019) without
squeeze-and-excitation, with ReLU6.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import keras
from keras import layers

from model.encoders.torch_file import Tensor, read_tensors


class _Stage(NamedTuple):
    """Blocks of one width: the first has the stride; all expand their channels by a factor."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    filters: int


ENCODER = "encoder"
"""Name of the encoder as a layer of a network."""

_STEM = 32
_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


def encoder() -> keras.Model:
    """The network from RGB (batch, height, width, 3), 0 to 255, to its features.

    Their sizes are 1/2, 1/4, 1/8, 1/16 and 1/32 of the images', with 16, 24, 40, 112 and 320
    channels.
    """
    images = keras.Input((None, None, 3), name="image")
    x = layers.Rescaling(1 / 128, offset=-127 / 128, name="rescale")(images)
    x = layers.Conv2D(_STEM, 3, 2, padding="same", use_bias=False, name="stem")(x)
    x = _relu6(_norm(x, "stem_norm"), "stem_relu")
    features = []
    number = 0
    for index, stage in enumerate(_STAGES):
        for block in range(stage.blocks):
            x = _block(x, stage, stage.stride if block == 0 else 1, f"block{number}")
            number += 1
        if index == len(_STAGES) - 1 or _STAGES[index + 1].stride == 2:
            features.append(x)
    return keras.Model(images, features, name=ENCODER)


def _block(x: Any, stage: _Stage, stride: int, name: str) -> Any:
    """Inverted residual: expand by 1x1, depthwise, project by 1x1; a shortcut if shapes agree."""
    start, channels = x, x.shape[-1]
    if stage.expansion > 1:
        wide = channels * stage.expansion
        x = layers.Conv2D(wide, 1, use_bias=False, name=f"{name}_expand")(x)
        x = _relu6(_norm(x, f"{name}_expand_norm"), f"{name}_expand_relu")
    x = layers.DepthwiseConv2D(
        stage.kernel, stride, padding="same", use_bias=False, name=f"{name}_depthwise"
    )(x)
    x = _relu6(_norm(x, f"{name}_depthwise_norm"), f"{name}_depthwise_relu")
    x = layers.Conv2D(stage.filters, 1, use_bias=False, name=f"{name}_project")(x)
    x = _norm(x, f"{name}_project_norm")
    if stride == 1 and channels == stage.filters:
        return layers.Add(name=f"{name}_add")([start, x])
    return x


def _norm(x: Any, name: str) -> Any:
    return layers.BatchNormalization(epsilon=1e-3, name=name)(x)


def _relu6(x: Any, name: str) -> Any:
    return layers.ReLU(6.0, name=name)(x)


def load(encoder: keras.Model, path: Path) -> None:
    """Loads the weights of a ``.pth`` file.

    Raises:
        ValueError: the file is not one of EfficientNet-Lite0.
    """
    tensors = read_tensors(path)
    try:
        for layer in encoder.layers:
            if name := _name_in_file(layer.name):
                layer.set_weights(_weights(layer, name, tensors))
    except KeyError as error:
        raise ValueError(f"{path} is no EfficientNet-Lite0: it holds no {error}") from error


def _name_in_file(layer: str) -> str:
    """A layer's name in the ``.pth`` file; empty for a layer without weights."""
    block, _, part = layer.partition("_")
    if block == "stem":
        return {"": "_conv_stem", "norm": "_bn0"}.get(part, "")
    names = {
        "expand": "_expand_conv",
        "expand_norm": "_bn0",
        "depthwise": "_depthwise_conv",
        "depthwise_norm": "_bn1",
        "project": "_project_conv",
        "project_norm": "_bn2",
    }
    if not block.startswith("block") or part not in names:
        return ""
    return f"_blocks.{block.removeprefix('block')}.{names[part]}"


def _weights(layer: keras.Layer, name: str, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    if isinstance(layer, layers.BatchNormalization):
        parts = ("weight", "bias", "running_mean", "running_var")
        return [tensors[f"{name}.{part}"] for part in parts]
    # PyTorch: filters, channels, height, width; of a depthwise kernel, channels come first.
    depthwise = isinstance(layer, layers.DepthwiseConv2D)
    axes = (2, 3, 0, 1) if depthwise else (2, 3, 1, 0)
    return [tensors[f"{name}.weight"].transpose(axes)]
