"""Base class of the inference engines: a network compiled for one batch shape; its settings."""

from __future__ import annotations

import glob
import os
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from beam.infer.model_uri import ResolvedModel
from runtime.errors import UserError
from runtime.processor import available_cores
from schemas.classes import UInt8Array
from schemas.geometry import UNPADDED, Geometry

Float32Array = npt.NDArray[np.float32]
Predicted = tuple[UInt8Array, Float32Array]
Compiled = Callable[[UInt8Array], Predicted]

_GEOMETRIES = (
    *(Geometry(multiple=multiple, remainder=0, margin=0) for multiple in (1, 16, 32, 64)),
    UNPADDED,
)
"""Tried in turn for a plain file: a network that halves n times takes multiples of 2**n."""

_COPIES = 3
"""Copies of a model's weights in memory: as read, as the engine lays them out, and headroom."""

_OUT_OF_MEMORY = re.compile(
    r"bad_alloc|bad allocation|out of memory|failed to allocate|can't alloc\b|"
    r"(cannot|could not) allocate memory|\boom\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Runtime:
    """Settings of the engine; the properties depend on the machine that predicts.

    Attributes:
        batch_size: images in one call.
        flip: whether the probabilities are means over an image and its mirror image.
        upscale: factor by which logits are scaled up, bilinearly.
        processes: workers on a machine; 0 means one for each of its cores.
        model_bytes: size of the model's file.
    """

    engine: Literal["openvino", "tensorflow"]
    precision: Literal["float32", "bfloat16", "float16"]
    batch_size: int
    flip: bool = False
    upscale: int = 1
    processes: int = 0
    model_bytes: int = 0

    @property
    def shared(self) -> bool:
        """Whether all processes of this machine share one model instead of loading one each.

        They do on a GPU, which one process uses fully, and if the copies would take more than a
        third of the machine's memory.
        """
        copies = (self.processes or available_cores()) * _COPIES
        return self._on_gpu or copies * self.model_bytes > total_memory() / 3

    @property
    def threads(self) -> int:
        """Threads of each process on this machine."""
        cores = available_cores()
        return cores if self.shared else max(1, cores // (self.processes or cores))

    @property
    def _on_gpu(self) -> bool:
        return self.engine == "tensorflow" and has_gpu()


class Engine(ABC):
    """A network compiled for one fixed batch shape.

    Images of a size that the network does not take are padded by mirroring to the next size that it
    takes, and the result is cropped. A partial last batch is padded, so the prediction for an image
    does not depend on the images beside it.

    Attributes:
        batch_size: images in one call of the network.
    """

    def __init__(self, model: ResolvedModel, runtime: Runtime) -> None:
        self._model = model
        self._flip, self._upscale = runtime.flip, runtime.upscale
        self.batch_size = runtime.batch_size
        # One engine may serve several processes.
        self._lock = threading.Lock()
        self._geometry = self._find_geometry()
        self._input = self._input_of(self._geometry)
        self._call: Compiled | None = None
        self._compile_largest_batch()

    @abstractmethod
    def _logits_shape(self, shape: tuple[int, int, int, int]) -> tuple[int, ...]:
        """Shape of the logits for an input of ``shape``; raises if the network does not take it."""

    @abstractmethod
    def _compile(self, shape: tuple[int, int, int, int]) -> Compiled:
        """The function from uint8 images of ``shape`` to class ids and confidences.

        With ``flip``, the second half of the batch mirrors the first half, and the results are one
        for each image of the first half. With ``upscale``, they are that many times as high and
        wide, also where they are returned by ``predict``.
        """

    def predict(self, images: UInt8Array) -> Predicted:
        """Predicts any number of images.

        Args:
            images: RGB, uint8 (n, height, width, 3).

        Returns:
            Class id, uint8, and highest probability, float32, each (n, height, width), both
            multiplied by ``upscale``.
        """
        with self._lock:
            return self._predict(images)

    def halve_batch(self) -> bool:
        """Recompiles for half the batch size, to use less memory; False if it is already 1."""
        with self._lock:
            if self.batch_size == 1:
                return False
            self.batch_size //= 2
            self._compile_largest_batch()
            return True

    def _compile_largest_batch(self) -> None:
        """Compiles for the batch size, or for a half, a quarter … of it until it fits into memory.

        Raises:
            UserError: not even one image fits.
        """
        while True:
            # Frees the memory of what was compiled before.
            self._call = None
            try:
                self._call = self._compile((self.batch_size << self._flip, *self._input, 3))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if self.batch_size == 1:
                    height, width = self._input
                    raise UserError(
                        f"model {self._model.uri!r}: one image of {width}x{height} does not fit "
                        "into the memory; free some, or name fewer --direct_num_workers or a "
                        "smaller --height and --width"
                    ) from error
                self.batch_size //= 2
            else:
                return

    def _predict(self, images: UInt8Array) -> Predicted:
        assert self._call is not None
        count, height, width = images.shape[:3]
        if (height, width) != self._input:
            rows, columns = self._geometry.mirror(height), self._geometry.mirror(width)
            images = images[:, rows][:, :, columns]
        height, width = height * self._upscale, width * self._upscale
        ids = np.empty((count, height, width), np.uint8)
        confidence = np.empty((count, height, width), np.float32)
        for start in range(0, count, self.batch_size):
            batch = images[start : start + self.batch_size]
            end = start + len(batch)
            if missing := self.batch_size - len(batch):
                batch = np.pad(batch, [(0, missing), (0, 0), (0, 0), (0, 0)], mode="edge")
            if self._flip:
                batch = np.concatenate([batch, batch[:, :, ::-1]])
            batch_ids, batch_confidence = self._call(batch)
            ids[start:end] = batch_ids[: end - start, :height, :width]
            confidence[start:end] = batch_confidence[: end - start, :height, :width]
        return ids, confidence

    def _input_of(self, geometry: Geometry) -> tuple[int, int]:
        return geometry.input_size(self._model.height), geometry.input_size(self._model.width)

    def _find_geometry(self) -> Geometry:
        """The sizes that the network takes: those logged with it, or the first candidate that fits.

        Raises:
            UserError: none fits, or the network has another number of classes than the taxonomy.
        """
        model = self._model
        for geometry in [model.geometry] if model.geometry else _GEOMETRIES:
            expected = geometry.output_size(model.height), geometry.output_size(model.width)
            try:
                shape = self._logits_shape((1, *self._input_of(geometry), 3))
            except Exception:  # noqa: BLE001, S112 - engines raise many types on a size
                continue
            if shape[1:3] != expected:
                continue
            classes = len(model.taxonomy)
            if shape[3:] == (classes,) or (shape[3:] == (1,) and classes == 2):
                return geometry
            raise UserError(
                f"model {model.uri!r}: expected logits of {classes} classes for taxonomy "
                f"{model.taxonomy.name}, found {shape[3] if len(shape) > 3 else shape}; "
                "name the --taxonomy it was trained with"
            )
        raise UserError(
            f"model {model.uri!r} takes no images of {model.width}x{model.height}; "
            "name the --height and --width it was trained with"
        )


def has_gpu() -> bool:
    """True if TensorFlow will find an NVIDIA GPU: a visible device, and CUDA's wheels."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    return not hidden and bool(glob.glob("/dev/nvidia[0-9]*")) and find_spec("nvidia") is not None


def total_memory() -> float:
    """Bytes of this machine's memory; infinity if they are not known."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return float("inf")
    kib = [line.split()[1] for line in lines if line.startswith("MemTotal:")]
    return int(kib[0]) * 1024 if kib else float("inf")


def is_out_of_memory(error: Exception) -> bool:
    """True for the errors that Python, TensorFlow and OpenVINO raise when memory runs out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return True
    return bool(_OUT_OF_MEMORY.search(str(error)))
