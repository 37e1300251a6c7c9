"""Reads the tensors of a ``.pth`` file as PyTorch before 1.6 wrote it, without PyTorch.

The file begins with three pickles about the format itself. A pickle of names, shapes and references
to storages follows, then one with the keys of the storages, then the storages in that order: number
of elements, int64, and little-endian bytes. Source: ``_legacy_save`` in torch/serialization.py.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Tensor = npt.NDArray[Any]
"""float32 or int64."""

_HEADER_PICKLES = 3
_DTYPES: dict[str, np.dtype[Any]] = {
    "FloatStorage": np.dtype("<f4"),
    "LongStorage": np.dtype("<i8"),
}


class _TensorRef(NamedTuple):
    """A reference to a tensor in a storage; offset and strides count elements."""

    storage: str
    kind: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; nothing in it is executed.

    Raises:
        ValueError: the file holds anything but tensors, or has another format.
    """
    try:
        with path.open("rb") as file:
            for _ in range(_HEADER_PICKLES):
                _TensorUnpickler(file).load()
            stored: dict[str, _TensorRef] = _TensorUnpickler(file).load()
            kinds = {tensor.storage: _DTYPES[tensor.kind] for tensor in stored.values()}
            storages = {}
            for key in _TensorUnpickler(file).load():
                elements = int(np.frombuffer(file.read(8), "<i8")[0])
                size = elements * kinds[key].itemsize
                storages[key] = np.frombuffer(file.read(size), kinds[key])
            return {name: _tensor(storages[ref.storage], ref) for name, ref in stored.items()}
    except (pickle.UnpicklingError, LookupError, EOFError, TypeError) as error:
        raise ValueError(f"{path} does not hold PyTorch tensors: {error}") from error


class _TensorUnpickler(pickle.Unpickler):
    """An unpickler that builds tensors only and runs no code of the file."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _make_ref
        if module == "torch" and name in _DTYPES:
            return name
        raise pickle.UnpicklingError(f"found {module}.{name}")

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        _, kind, key, *_ = pid
        return key, kind


def _make_ref(
    storage: tuple[str, str], offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> _TensorRef:
    return _TensorRef(*storage, offset, shape, strides)


def _tensor(storage: Tensor, stored: _TensorRef) -> Tensor:
    last = sum((size - 1) * step for size, step in zip(stored.shape, stored.strides, strict=True))
    if min(stored.offset, *stored.strides, last, 0) < 0 or stored.offset + last >= len(storage):
        raise pickle.UnpicklingError(f"{stored} lies outside its {len(storage)} elements")
    strides = [step * storage.itemsize for step in stored.strides]
    view = np.lib.stride_tricks.as_strided(storage[stored.offset :], stored.shape, strides)
    return view.copy()
