"""The model as MLflow serves it: images in, class ids out.

MLflow logs this file as code with each model, so it imports nothing from this project.
"""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from PIL import Image, ImageOps

_BIT_DEPTH_AT = 24
"""Where a PNG's header has it."""

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Channels of a PNG's pixels by colour type."""

_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
"""Interlacing passes, as in images/png.py."""


class _Network:
    """Loads the Keras file once; images are resized and padded as ``beam.infer`` does."""

    def load_context(self, context: Any) -> None:
        """Reads the network in Keras's safe mode."""
        import keras

        self._model = keras.saving.load_model(
            context.artifacts["keras_file"], compile=False, safe_mode=True
        )
        self._input = context.model_config

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, ARG002
        """Class ids, uint8 (batch, height, width), at the size of the images.

        Args:
            model_input: RGB values 0 to 255 (batch, height, width, 3), or a list of PNG or JPEG
                files of one size, as bytes or in base64; or a dict or table of either, ``image``.

        Raises:
            MlflowException: the input is neither; a server answers with status 400.
        """
        values = _image_column(model_input)
        files = _files(values)
        images = _decoded(files) if files else _validated(values)
        height, width = images.shape[1:3]
        fitted = self._fit(images)
        rows, columns = fitted.shape[1:3]
        padded = fitted[:, self._mirror(rows)][:, :, self._mirror(columns)]
        logits = self._model.predict(padded, verbose=0)[:, :rows, :columns]
        ids = logits[..., 0] > 0 if logits.shape[-1] == 1 else np.argmax(logits, axis=-1)
        return _resized(ids.astype(np.uint8), height, width, Image.Resampling.NEAREST)

    def _fit(self, images: Any) -> Any:
        """Resizes to the size of the training's images, if they had one; see images/resize.py."""
        height, width = self._input["height"], self._input["width"]
        resample = {"nearest": "NEAREST", "bilinear": "BILINEAR", "area": "BOX"}
        method = Image.Resampling[resample[self._input["resize"]]]
        return _resized(images, height, width, method) if height else images

    def _mirror(self, size: int) -> Any:
        """Index of the image row (or column) at each input position; see schemas/geometry.py."""
        margin, multiple = self._input["margin"], self._input["multiple"]
        after = margin + (self._input["remainder"] - size - 2 * margin) % multiple
        return np.pad(np.arange(size), (margin, after), mode="symmetric")


def _resized(images: Any, height: int, width: int, method: Image.Resampling) -> Any:
    if images.shape[1:3] == (height, width):
        return images
    resized = (Image.fromarray(image).resize((width, height), method) for image in images)
    return np.stack([np.asarray(image) for image in resized])


def _image_column(given: Any) -> Any:
    """The column ``image`` of a dict or a pandas table; any other input as it is."""
    if not isinstance(given, dict) and not hasattr(given, "columns"):
        return given
    if "image" not in given:
        raise _refused(f"expected a column named image, found {sorted(map(str, given))}")
    found = given["image"]
    return found if isinstance(given, dict) else found.tolist()


def _files(given: Any) -> list[str | bytes]:
    """The files in an input; none if it holds numbers, and a refusal if it holds both."""
    if isinstance(given, str | bytes):
        return [given]
    found: list[str | bytes] = []
    if isinstance(given, list | tuple) or getattr(given, "dtype", np.dtype(int)).kind in "OSU":
        for item in given:
            nested = isinstance(item, str | bytes | list | tuple | np.ndarray)
            files = _files(item) if nested else []
            if not files and (found or any(isinstance(one, str | bytes) for one in given)):
                # Left out, it would leave fewer masks than there are rows.
                raise _refused(f"expected a PNG or JPEG for each image, found {str(item)[:40]!r}")
            if not files:
                break
            found += files
    return found


def _decoded(files: Sequence[str | bytes]) -> Any:
    images = [_image(file) for file in files]
    if len(sizes := {image.shape[:2] for image in images}) > 1:
        raise _refused(f"expected images of one size in a request, found {sorted(sizes)}")
    return np.stack(images)


def _image(file: str | bytes) -> Any:
    """RGB pixels of a file, as ``beam.infer`` reads it."""
    try:
        if isinstance(file, str):
            # A browser's data URL has a head that ends with a comma.
            file = base64.b64decode(file.rpartition(",")[2], validate=True)
        image = Image.open(io.BytesIO(file), formats=("PNG", "JPEG"))
        turned = ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _refused(f"expected a PNG or JPEG, as bytes or in base64: {error}") from error
    # Of 16 bits in each of several channels, Pillow keeps 8 without a word.
    deep = image.format == "PNG" and file[_BIT_DEPTH_AT] > 8
    if deep or turned.mode.startswith(("I", "F")):
        raise _refused(f"expected 8 bits a channel, found more, in mode {turned.mode}")
    if image.format == "PNG":
        if getattr(image, "is_animated", False):
            raise _refused("expected a still image, found an animation")
        _check_rows(file)
    if turned.has_transparency_data:
        lowest, _ = turned.convert("RGBA").getchannel("A").getextrema()
        if lowest == 255:
            return np.asarray(turned.convert("RGB"))
        raise _refused("expected an opaque image, found transparent pixels")
    return np.asarray(turned.convert("RGB"))


def _check_rows(file: bytes) -> None:
    """Refuses a PNG with fewer rows than its header says, which Pillow leaves black."""
    width, height, depth, colour_type, *_, interlaced = struct.unpack_from(">IIBBBBB", file, 16)
    bits = depth * _CHANNELS[colour_type]
    sizes = [
        (-(-(width - left) // across), -(-(height - top) // down))
        for left, top, across, down in (_ADAM7 if interlaced else [(0, 0, 1, 1)])
    ]
    expected = sum(
        rows * (1 + (columns * bits + 7) // 8) for columns, rows in sizes if columns > 0 < rows
    )
    inflate, found, offset = zlib.decompressobj(), 0, 8
    while offset + 8 <= len(file):
        length, kind = struct.unpack_from(">I4s", file, offset)
        if kind == b"IDAT":
            found += len(inflate.decompress(file[offset + 8 : offset + 8 + length]))
        offset += 12 + length
    if found < expected:
        raise _refused(f"expected {expected} bytes of pixels, found {found}: rows are missing")


def _validated(values: Any) -> Any:
    """RGB values as uint8; refuses numbers that may mean anything but 0 to 255."""
    try:
        values = np.asarray(values)
    except ValueError as error:
        raise _refused(f"expected images of one size in a request: {error}") from error
    if values.ndim != 4 or values.shape[3] != 3 or not values.size:
        raise _refused(f"expected RGB images (batch, height, width, 3), found {values.shape}")
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "iuf":
        raise _refused(f"expected numbers from 0 to 255, found {values.dtype}")
    lowest, highest = values.min(), values.max()
    found = f"expected whole numbers from 0 to 255, found {values.dtype} from {lowest} to {highest}"
    if values.dtype.kind == "f" and not highest > 1:
        raise _refused(f"{found}; multiply shares from 0 to 1 by 255 and round them")
    if not 0 <= lowest <= highest <= 255 or np.any(values % 1):
        raise _refused(found)
    return values.astype(np.uint8)


def _refused(message: str) -> MlflowException:
    return MlflowException.invalid_parameter_value(message)


class UNetServer(_Network, mlflow.pyfunc.PythonModel):
    """Inherits predict(): MLflow would ask for type hints on one defined in this class."""


mlflow.models.set_model(UNetServer())
