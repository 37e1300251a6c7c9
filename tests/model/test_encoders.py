"""Encoders: their weights, their features, and how a training begins with them."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from model import hardware
from model.encoders.torch_file import read_tensors
from model.encoders.weights import KERAS_ENCODERS, weights_file
from model.plan import plan, training_key
from runtime.errors import UserError
from schemas.config import TrainConfig
from schemas.manifest import load_manifest

VEHICLES_AND_LIGHTS = {475, 705, 867, 920}
"""ImageNet's classes car mirror, passenger car, trailer truck and traffic light."""

LITE0 = TrainConfig(architecture="unet-lite0")


@pytest.fixture(scope="module")
def imagenet() -> Path:
    path = weights_file(LITE0)
    assert path is not None
    return path


def _write_file(path: Path, stored: bytes, values: list[float]) -> Path:
    """A file of one storage, as PyTorch before 1.6 wrote it."""
    facts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    pieces = [pickle.dumps(fact, 2) for fact in facts] + [stored, pickle.dumps(["7"], 2)]
    data = struct.pack("<q", len(values)) + np.array(values, "<f4").tobytes()
    path.write_bytes(b"".join(pieces) + data)
    return path


def _tensor(shape: str, strides: str, offset: int = 0, build: str = "_rebuild_tensor_v2") -> bytes:
    """Opcodes of ``{"w": tensor}``, of protocol 0, so that they can be read."""
    return (
        "(S'w'\n"
        f"ctorch._utils\n{build}\n"
        "((S'storage'\nctorch\nFloatStorage\nS'7'\nS'cpu'\nI6\nNtQ"
        f"I{offset}\n{shape}{strides}I00\nNtRd."
    ).encode()


def test_tensors_are_read_as_their_strides_say(tmp_path: Path) -> None:
    stored = _tensor("(I2\nI3\nt", "(I1\nI2\nt")
    path = _write_file(tmp_path / "a.pth", stored, [0, 1, 2, 3, 4, 5])
    assert read_tensors(path)["w"].tolist() == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (_tensor("(I2\nI3\nt", "(I9\nI1\nt"), "outside its 6 elements"),
        (_tensor("(I2\nI3\nt", "(I3\nI1\nt", offset=1), "outside its 6 elements"),
        (_tensor("(I2\nI3\nt", "(I3\nI-1\nt"), "outside its 6 elements"),
        (_tensor("(I2\nI3\nt", "(I3\nI1\nt", build="_rebuild_anything"), "found torch._utils"),
        (b"cos\nsystem\n(S'true'\ntR.", "found os.system"),
    ],
)
def test_a_file_of_anything_else_is_refused_and_not_executed(
    tmp_path: Path, stored: bytes, reason: str
) -> None:
    path = _write_file(tmp_path / "a.pth", stored, [0, 1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match=reason):
        read_tensors(path)


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, imagenet: Path) -> None:
    cut = tmp_path / "cut.pth"
    for size in (0, 100, 200_000):
        cut.write_bytes(imagenet.read_bytes()[:size])
        with pytest.raises(ValueError, match=r"cut\.pth does not hold PyTorch tensors"):
            read_tensors(cut)


def test_the_encoder_classifies_as_on_imagenet(imagenet: Path, real: Path) -> None:
    """The classifier that the file holds, on our features: right only if every layer is."""
    from images.png import decode_image
    from images.resize import resize_image
    from model.encoders import lite

    encoder, weights = lite.encoder(), read_tensors(imagenet)
    lite.load(encoder, imagenet)
    picture = decode_image((real / "dataB/dataB/CameraRGB/000_0315.png").read_bytes(), 1 << 20)
    features = encoder(resize_image(picture, 224, 300, "bilinear")[None])
    sizes = [(112, 150, 16), (56, 75, 24), (28, 38, 40), (14, 19, 112), (7, 10, 320)]
    assert [one.shape[1:] for one in features] == sizes
    x = np.asarray(features[-1])[0] @ weights["_conv_head.weight"][:, :, 0, 0].T
    x = (x - weights["_bn1.running_mean"]) / np.sqrt(weights["_bn1.running_var"] + 1e-3)
    x = np.clip(x * weights["_bn1.weight"] + weights["_bn1.bias"], 0, 6).mean(axis=(0, 1))
    scores = weights["_fc.weight"] @ x + weights["_fc.bias"]
    assert int(scores.argmax()) in VEHICLES_AND_LIGHTS


def test_a_new_network_begins_with_the_weights_of_the_package(imagenet: Path) -> None:
    from model.encoders.lite import ENCODER
    from model.unet import build, load_encoder_weights

    network = build(LITE0, 13)
    load_encoder_weights(network, LITE0)
    stem = network.get_layer(ENCODER).get_layer("stem").get_weights()[0]
    assert np.array_equal(stem.transpose(3, 2, 0, 1), read_tensors(imagenet)["_conv_stem.weight"])
    assert network.compute_output_shape((None, 96, 128, 3)) == (None, 96, 128, 13)


def test_statistics_of_imagenet_stay_as_they_are_and_others_are_learnt() -> None:
    from keras import layers

    from model.encoders.lite import ENCODER
    from model.unet import build

    def learnt(config: TrainConfig) -> set[bool]:
        encoder = build(config, 3).get_layer(ENCODER)
        return {
            one.trainable for one in encoder.layers if isinstance(one, layers.BatchNormalization)
        }

    assert learnt(LITE0) == {False}
    assert learnt(LITE0.model_copy(update={"encoder_weights": "none"})) == {True}


def test_a_cpu_trains_the_encoder_in_float32_beside_a_decoder_in_16_bits() -> None:
    import keras

    from model.encoders.lite import ENCODER
    from model.unet import build

    config = LITE0.model_copy(update={"precision": "mixed_bfloat16"})
    with hardware.training_scope(config):
        network = build(config, 3)
    assert {one.compute_dtype for one in network.get_layer(ENCODER).layers} == {"float32"}
    assert network.get_layer("up1_conv1").compute_dtype == "bfloat16"
    assert network.output.dtype == "float32"
    assert keras.config.dtype_policy().name == "float32"


def test_another_file_of_weights_is_refused_by_name(tmp_path: Path) -> None:
    from model.unet import build, load_encoder_weights

    other = _write_file(tmp_path / "other.pth", _tensor("(I6\nt", "(I1\nt"), [0, 1, 2, 3, 4, 5])
    config = LITE0.model_copy(update={"encoder_weights": str(other)})
    with pytest.raises(UserError, match=r"other\.pth is no EfficientNet-Lite0: it holds no '_conv"):
        load_encoder_weights(build(config, 3), config)


@pytest.mark.parametrize("name", ["MobileNetV2", "ResNet50", "ConvNeXtTiny", "VGG16"])
def test_networks_of_keras_are_encoders_whose_files_load_safely(name: str, tmp_path: Path) -> None:
    import keras

    from model.unet import build, load_encoder_weights

    config = TrainConfig(architecture=f"unet-{name}", encoder_weights="none", filters=2)
    network = build(config, 13)
    load_encoder_weights(network, config)
    assert network.compute_output_shape((None, 64, 96, 3)) == (None, 64, 96, 13)
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
    path = tmp_path / "unet.keras"
    network.save(path)
    again = keras.saving.load_model(path, compile=False, safe_mode=True)
    assert np.array_equal(again(image), network(image))


def test_weights_of_keras_are_taken_from_a_file(tmp_path: Path) -> None:
    import keras

    from model.encoders.lite import ENCODER
    from model.unet import build, load_encoder_weights

    source = keras.applications.MobileNetV2(include_top=False, weights=None)
    path = tmp_path / "mobilenet.weights.h5"
    source.save_weights(path)
    config = TrainConfig(architecture="unet-MobileNetV2", encoder_weights=str(path), filters=2)
    network = build(config, 13)
    load_encoder_weights(network, config)
    found = network.get_layer(ENCODER).get_weights()
    assert all(np.array_equal(*pair) for pair in zip(found, source.get_weights(), strict=True))
    wrong = config.model_copy(update={"architecture": "unet-MobileNet"})
    with pytest.raises(UserError, match=r"mobilenet\.weights\.h5' of MobileNet cannot be had"):
        load_encoder_weights(build(wrong, 13), wrong)


def test_every_encoder_of_keras_exists() -> None:
    import keras

    assert all(hasattr(keras.applications, name) for name in KERAS_ENCODERS)


def test_unknown_encoders_and_missing_weights_are_refused(dataset: Path) -> None:
    with pytest.raises(UserError, match=r"'unet-Xception': expected unet, unet-2015, .*MobileNet"):
        plan(str(dataset), TrainConfig(architecture="unet-Xception"))
    none = LITE0.model_copy(update={"encoder_weights": "/none.pth"})
    with pytest.raises(UserError, match=r"encoder_weights '/none\.pth': expected imagenet, "):
        plan(str(dataset), none)
    unused = TrainConfig(architecture="unet", encoder_weights="/some.pth")
    with pytest.raises(UserError, match="architecture unet has no pretrained encoder; choose"):
        plan(str(dataset), unused)


def test_missing_and_damaged_weights_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model.encoders import weights

    monkeypatch.setattr(weights, "_PACKAGE", "efficientnet_lite99")
    with pytest.raises(UserError, match=r"efficientnet-lite99, which is not installed; install it"):
        weights_file(LITE0)
    package = tmp_path / "damaged_weights"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / weights._FILE).write_bytes(b"something else")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(weights, "_PACKAGE", package.name)
    with pytest.raises(UserError, match="is missing or damaged; install damaged_weights again"):
        weights_file(LITE0)


def test_the_training_key_depends_on_the_bytes_of_the_weights(
    dataset: Path, tmp_path: Path
) -> None:
    manifest, path = load_manifest(dataset), tmp_path / "a.pth"

    def key(text: str) -> str:
        path.write_text(text)
        config = LITE0.model_copy(update={"encoder_weights": str(path)})
        return training_key(manifest, config)

    assert key("a") == key("a") != key("b")
    assert key("a") != training_key(manifest, LITE0)
