"""Imports of large libraries: in half of their time, and without what we do not use of them."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

UNUSED_BY_BEAM = ("pandas",)
"""Beam and pyarrow import these if they are installed (MLflow depends on pandas), for data frames,
which takes a fifth of their time."""

_UNUSED_BY_KERAS = ("jax", "matplotlib", "pandas", "sklearn")
"""TensorFlow and Keras import these if they are installed, for conversions, galleries, data frames
and wrappers, which takes a third of their time."""


def import_quickly(name: str, *without: str) -> Any:
    """Imports a module that is, or needs, a large library; returns it.

    While a library is loaded, Python's garbage collector searches all objects again and again, and
    once more when the process ends. It finds nothing, for modules stay, so it is off meanwhile and
    leaves out later what exists now (``gc.freeze``). So imported, and with its exit, Beam takes 0.7
    s instead of 1.2, and TensorFlow 1.7 s instead of 3.0.

    Args:
        without: modules that seem not to be installed meanwhile.
    """
    if name in sys.modules:
        return sys.modules[name]
    enabled = gc.isenabled()
    gc.disable()
    try:
        with hidden(*without):
            return importlib.import_module(name)
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


@contextmanager
def hidden(*names: str) -> Iterator[None]:
    """Lets modules seem not to be installed during a block, unless they are imported already."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent, cast(Any, None)))
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def import_tensorflow() -> Any:
    """Imports TensorFlow and Keras, without what only others use of it.

    Standard error is discarded meanwhile, since no setting silences all lines of TensorFlow.

    Python exceptions are raised as usual. Afterwards TensorFlow's native code logs only fatal
    errors, unless TF_CPP_MIN_LOG_LEVEL is set, and Keras runs on it, whatever the environment says.
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    saved, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, 2)
        tf = import_quickly("tensorflow", *_UNUSED_BY_KERAS)
        # The first query for devices complains about a missing GPU.
        tf.config.list_physical_devices()
        return tf
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(devnull)


def import_openvino() -> Any:
    """Imports OpenVINO without its telemetry, which reports each import to its vendor."""
    sys.modules.setdefault("openvino_telemetry", cast(Any, None))
    return import_quickly("openvino")
