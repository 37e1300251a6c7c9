"""U-Nets: parameters, layers, and logits for every pixel of any image size."""

import numpy as np
import pytest

from model.plan import GEOMETRY
from schemas.config import TrainConfig
from schemas.geometry import PADDED, UNPADDED, Geometry


@pytest.mark.parametrize(("classes", "parameters"), [(13, 8_640_141), (23, 8_640_471)])
def test_the_unet_of_the_notebooks(classes: int, parameters: int) -> None:
    from model.unet import unet

    model = unet(classes)
    assert model.count_params() == parameters
    assert model.output.dtype == "float32"
    assert model.compute_output_shape((None, 96, 128, 3)) == (None, 96, 128, classes)


def test_the_unet_of_the_paper() -> None:
    from keras import layers

    from model.unet import unet_2015

    model = unet_2015(2)
    assert model.compute_output_shape((None, 572, 572, 3)) == (None, 388, 388, 2)
    convolutions = [one for one in model.layers if isinstance(one, layers.Conv2D)]
    transposed = [one for one in model.layers if isinstance(one, layers.Conv2DTranspose)]
    # "In total the network has 23 convolutional layers", the four up-convolutions among them.
    assert len({*convolutions, *transposed}) == 23
    # Counted by hand: 3x3 and 2x2 kernels and biases of 64 to 1024 channels, with RGB input.
    assert model.count_params() == _parameters_of_the_paper(classes=2, channels=3)


def _parameters_of_the_paper(classes: int, channels: int) -> int:
    down = [64, 128, 256, 512, 1024]
    total, before = 0, channels
    for width in down:
        total += 9 * before * width + width + 9 * width * width + width
        before = width
    for width in reversed(down[:-1]):
        total += 4 * before * width + width
        total += 9 * 2 * width * width + width + 9 * width * width + width
        before = width
    return total + 64 * classes + classes


@pytest.mark.parametrize(("channels", "parameters"), [(3, 2_158_705), (1, 2_158_417)])
def test_the_small_network_with_dropout(channels: int, parameters: int) -> None:
    from keras import layers

    from model.unet import unet_dropout

    model = unet_dropout(channels=channels)
    assert model.compute_output_shape((None, 96, 128, channels)) == (None, 96, 128, 1)
    rates = [one.rate for one in model.layers if isinstance(one, layers.Dropout)]
    assert rates == [0.25] + [0.5] * 7
    before = [
        type(one._inbound_nodes[0].input_tensors[0]._keras_history.operation)
        for one in model.layers
        if isinstance(one, layers.Dropout)
    ]
    assert before == [layers.MaxPooling2D] * 4 + [layers.Concatenate] * 4
    assert model.count_params() == parameters


@pytest.mark.parametrize("normalisation", ["batch", "group"])
def test_normalisation_stands_between_each_convolution_and_its_relu(normalisation: str) -> None:
    from keras import layers

    from model.unet import unet

    kind = {"batch": layers.BatchNormalization, "group": layers.GroupNormalization}[normalisation]
    model = unet(13, filters=4, normalisation=normalisation)
    convolutions = [
        one for one in model.layers if type(one) is layers.Conv2D and one.kernel_size == (3, 3)
    ]
    assert len(convolutions) == 19
    for one in convolutions:
        (after,) = one._outbound_nodes
        assert isinstance(after.operation, kind)
        assert isinstance(after.operation._outbound_nodes[0].operation, layers.ReLU)
    assert not [one for one in unet(13, filters=4).layers if isinstance(one, kind)]


def test_a_network_takes_any_size_it_admits_and_any_number_type() -> None:
    from model.unet import unet

    model = unet(5, filters=2)
    image = np.random.default_rng(0).integers(0, 256, (2, 48, 80, 3), np.uint8)
    logits = model(image)
    assert logits.shape == (2, 48, 80, 5)
    assert np.allclose(logits, model(image.astype(np.float32)), atol=1e-5)


@pytest.mark.parametrize("architecture", ["unet", "unet-2015", "unet-dropout"])
@pytest.mark.parametrize("size", [(96, 128), (33, 50), (7, 1)])
def test_every_network_answers_for_every_pixel_of_every_size(architecture, size) -> None:
    from model.unet import build

    geometry = GEOMETRY[architecture]
    model = build(TrainConfig(architecture=architecture, filters=1), 5)
    fitted = tuple(geometry.input_size(side) for side in size)
    _, *logits, classes = model.compute_output_shape((None, *fitted, 3))
    assert classes == 5
    assert logits == [geometry.output_size(side) for side in size]
    assert all(given >= side for given, side in zip(logits, size, strict=True))


def test_two_classes_have_one_logit_and_grey_networks_take_rgb() -> None:
    from model.unet import build

    config = TrainConfig(architecture="unet-dropout", channels=1, filters=2)
    model = build(config, 2)
    assert model.compute_output_shape((None, 32, 48, 3)) == (None, 32, 48, 1)
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3)).astype(np.uint8)
    grey = np.repeat((image @ [0.2989, 0.587, 0.114])[..., None], 3, axis=-1)
    assert np.allclose(model(image), model(grey.astype(np.float32)), atol=2e-2)
    with pytest.raises(ValueError, match="channels=1 is for architecture=unet-dropout"):
        TrainConfig(channels=1)


def test_mirroring_fills_the_margin_and_what_is_missing() -> None:
    assert PADDED.mirror(32).tolist() == list(range(32))
    assert PADDED.mirror(14).tolist() == [*range(14), 13, 12]
    tight = Geometry(multiple=4, remainder=2, margin=2)
    assert tight.input_size(3) == 10
    assert tight.mirror(3).tolist() == [1, 0, 0, 1, 2, 2, 1, 0, 0, 1]
    assert (UNPADDED.input_size(388), UNPADDED.output_size(388)) == (572, 388)
    assert UNPADDED.input_size(1) == 188
