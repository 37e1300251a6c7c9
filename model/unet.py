"""U-Nets for semantic segmentation: the notebooks', the paper's, a small one, one on an encoder.

Source: Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image
Segmentation", 2015.

Arguments in common: ``classes``, the channels of the logits; ``filters``, the channels of the first
block, which each pooling doubles; ``normalisation``, between each 3x3 convolution and its ReLU.
"""

from __future__ import annotations

from typing import Any, Literal

import keras
from keras import layers

from model.encoders import keras_applications, lite
from model.encoders.weights import has_encoder, keras_encoder, weights_file
from model.hardware import encoder_scope
from runtime.errors import UserError
from schemas.config import TrainConfig

Normalisation = Literal["none", "batch", "group"]

DEPTH = 4
"""Number of poolings in each network."""

_WIDTHS = (1, 2, 3, 4, 8)
"""Channels of the decoder of a network on an encoder, as multiples of ``filters``; finest first."""


def build(config: TrainConfig, classes: int) -> keras.Model:
    """Builds the network that a configuration asks for, from RGB to float32 logits.

    Two classes share one logit, whose sigmoid is the probability of the second.
    """
    outputs = 1 if classes == 2 else classes
    filters, dropout, norm = config.filters, config.dropout, config.normalisation
    if has_encoder(config.architecture):
        return unet_on_encoder(outputs, _encoder(config), filters, dropout, norm)
    if config.architecture == "unet-2015":
        return unet_2015(outputs, filters, dropout, norm)
    if config.architecture == "unet-dropout":
        network = unet_dropout(outputs, filters, dropout, config.channels, norm)
        return network if config.channels == 3 else _take_rgb(network)
    return unet(outputs, filters, dropout, norm)


def _encoder(config: TrainConfig) -> keras.Model:
    """The encoder that a configuration asks for.

    With weights from ImageNet, batch normalisation keeps ImageNet's statistics: those of small
    batches of similar frames would be worse, at twice the work.
    """
    name = keras_encoder(config.architecture)
    with encoder_scope():
        encoder = keras_applications.encoder(name) if name else lite.encoder()
    if config.encoder_weights != "none":
        _freeze_normalisation(encoder)
    return encoder


def _freeze_normalisation(network: keras.Model) -> None:
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = False
        elif isinstance(layer, keras.Model):
            _freeze_normalisation(layer)


def load_encoder_weights(network: keras.Model, config: TrainConfig) -> None:
    """Loads the configured initial weights into a new network's encoder, if it has one.

    Raises:
        UserError: there are none, or they are of another encoder.
    """
    if not has_encoder(config.architecture) or config.encoder_weights == "none":
        return
    encoder, path = network.get_layer(lite.ENCODER), weights_file(config)
    if name := keras_encoder(config.architecture):
        keras_applications.load(encoder, name, path)
        return
    assert path is not None
    try:
        lite.load(encoder, path)
    except ValueError as error:
        raise UserError(f"encoder_weights {config.encoder_weights!r}: {error}") from error


def unet_on_encoder(
    classes: int,
    encoder: keras.Model,
    filters: int = 32,
    dropout: float = 0.1,
    normalisation: Normalisation = "batch",
) -> keras.Model:
    """A U-Net whose encoder is another network.

    Args:
        encoder: from RGB, 0 to 255, to features that halve in size; see ``model.encoders``.
        filters: channels at the images' own size; coarser ones have 2, 3, 4 and 8 times as many.
        dropout: rate of whole channels of the coarsest features.

    Returns:
        A model from RGB (batch, height, width, 3), 0 to 255, height and width multiples of 32, to
        float32 logits (batch, height, width, classes).
    """
    inputs = keras.Input((None, None, 3), name="image")
    *skips, x = encoder(inputs)
    x = layers.SpatialDropout2D(dropout, name="bottom_dropout")(x)
    for level in reversed(range(len(_WIDTHS))):
        x = layers.Conv2DTranspose(
            filters * _WIDTHS[level], 2, strides=2, name=f"up{level}_upsample"
        )(x)
        if level and skips:
            x = layers.Concatenate(name=f"up{level}_skip")([x, skips.pop()])
            x = _block(x, filters * _WIDTHS[level], f"up{level}", normalisation)
        else:
            x = _convolution(x, filters * _WIDTHS[level], f"up{level}", normalisation)
    return keras.Model(inputs, _logits(x, classes), name="unet_on_encoder")


def unet(
    classes: int, filters: int = 32, dropout: float = 0.3, normalisation: Normalisation = "none"
) -> keras.Model:
    """The same-padded U-Net of the Lyft notebooks.

    Args:
        dropout: rate after the two deepest blocks of the encoder.

    Returns:
        A model from RGB (batch, height, width, 3), uint8 or float, 0 to 255, height and width
        multiples of 16, to float32 logits (batch, height, width, classes).
        8,640,141 parameters for 13 classes and 32 filters, 8,640,471 for 23.
    """
    inputs = keras.Input((None, None, 3), name="image")
    x, skips = _encode(inputs, filters, dropout, normalisation, padding="same")
    for level in reversed(range(DEPTH)):
        x = _upsample(x, filters << level, level)
        x = layers.Concatenate(name=f"up{level}_skip")([x, skips[level]])
        x = _block(x, filters << level, f"up{level}", normalisation)

    x = _convolution(x, filters, "head", normalisation)
    return keras.Model(inputs, _logits(x, classes), name="unet")


def unet_2015(
    classes: int, filters: int = 64, dropout: float = 0.5, normalisation: Normalisation = "none"
) -> keras.Model:
    """The U-Net of the paper: unpadded convolutions, so that logits depend on real pixels only.

    It has 23 convolutional layers. Each pooling must halve an even number, so ``size % 16 == 12``,
    188 or more.

    Args:
        dropout: rate after the two deepest blocks of the encoder.

    Returns:
        A model from RGB (batch, height, width, 3), 0 to 255, to float32 logits
        (batch, height - 184, width - 184, classes), e.g. 388x388 for 572x572.
    """
    inputs = keras.Input((None, None, 3), name="image")
    x, skips = _encode(inputs, filters, dropout, normalisation, padding="valid")
    margin = 4
    for level in reversed(range(DEPTH)):
        x = layers.Conv2DTranspose(filters << level, 2, strides=2, name=f"up{level}_upsample")(x)
        # Pixels of this level that the convolutions below it have cut off each side.
        skip = layers.Cropping2D(margin, name=f"up{level}_crop")(skips[level])
        x = layers.Concatenate(name=f"up{level}_skip")([skip, x])
        x = _block(x, filters << level, f"up{level}", normalisation, padding="valid")
        margin = 2 * (margin + 4)

    return keras.Model(inputs, _logits(x, classes), name="unet_2015")


def unet_dropout(
    classes: int = 1,
    filters: int = 16,
    dropout: float = 0.5,
    channels: int = 3,
    normalisation: Normalisation = "none",
) -> keras.Model:
    """A small U-Net with dropout after each pooling and each concatenation.

    Args:
        dropout: rate; half of it after the first pooling.
        channels: 3 for RGB, 1 for greyscale.

    Returns:
        A model from (batch, height, width, channels), 0 to 255, height and width multiples of 16,
        to float32 logits (batch, height, width, classes).
    """
    inputs = keras.Input((None, None, channels), name="image")
    x = layers.Rescaling(1 / 255, name="rescale")(inputs)

    skips = []
    for level in range(DEPTH):
        x = _block(x, filters << level, f"down{level}", normalisation)
        skips.append(x)
        x = layers.MaxPooling2D(name=f"down{level}_pool")(x)
        x = layers.Dropout(dropout if level else dropout / 2, name=f"down{level}_dropout")(x)

    x = _block(x, filters << DEPTH, "bottom", normalisation)

    for level in reversed(range(DEPTH)):
        x = _upsample(x, filters << level, level)
        x = layers.Concatenate(name=f"up{level}_skip")([x, skips[level]])
        x = layers.Dropout(dropout, name=f"up{level}_dropout")(x)
        x = _block(x, filters << level, f"up{level}", normalisation)

    return keras.Model(inputs, _logits(x, classes), name="unet_dropout")


def _take_rgb(network: keras.Model) -> keras.Model:
    """Puts a conversion from RGB before a greyscale network."""
    inputs = keras.Input((None, None, 3), name="image")
    grey = keras.ops.image.rgb_to_grayscale(keras.ops.cast(inputs, "float32"))
    return keras.Model(inputs, network(grey), name=f"{network.name}_grey")


def _encode(
    inputs: Any, filters: int, dropout: float, normalisation: Normalisation, padding: str
) -> tuple[Any, list[Any]]:
    """The contracting path: the coarsest features, and those for skip connections, finest first."""
    x = layers.Rescaling(1 / 255, name="rescale")(inputs)
    skips = []
    for level in range(DEPTH):
        x = _block(x, filters << level, f"down{level}", normalisation, padding)
        if level == DEPTH - 1:
            x = layers.Dropout(dropout, name=f"down{level}_dropout")(x)
        skips.append(x)
        x = layers.MaxPooling2D(name=f"down{level}_pool")(x)
    x = _block(x, filters << DEPTH, "bottom", normalisation, padding)
    return layers.Dropout(dropout, name="bottom_dropout")(x), skips


def _upsample(x: Any, filters: int, level: int) -> Any:
    name = f"up{level}_upsample"
    return layers.Conv2DTranspose(filters, 3, strides=2, padding="same", name=name)(x)


def _block(
    x: Any, filters: int, name: str, normalisation: Normalisation, padding: str = "same"
) -> Any:
    x = _convolution(x, filters, f"{name}_conv1", normalisation, padding)
    return _convolution(x, filters, f"{name}_conv2", normalisation, padding)


def _convolution(
    x: Any, filters: int, name: str, normalisation: Normalisation, padding: str = "same"
) -> Any:
    x = layers.Conv2D(
        filters,
        3,
        padding=padding,
        activation="relu" if normalisation == "none" else None,
        use_bias=normalisation == "none",
        kernel_initializer="he_normal",
        name=name,
    )(x)
    if normalisation == "none":
        return x
    if normalisation == "batch":
        # Running statistics adapt within tens of steps: small datasets have few steps.
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
    else:
        # 16 channels per group, or all in one group if there are fewer.
        groups = max(1, filters // 16)
        x = layers.GroupNormalization(groups, name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def _logits(x: Any, classes: int) -> Any:
    return layers.Conv2D(classes, 1, dtype="float32", name="logits")(x)
