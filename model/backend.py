"""Keras's backend: TensorFlow, or JAX. One is chosen for a process, before Keras is imported."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from runtime.errors import UserError
from runtime.imports import import_tensorflow

Backend = Literal["tensorflow", "jax"]

_JAX_ON_GPU = ("jax_cuda12_plugin", "jax_cuda13_plugin")
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def choose(wanted: Literal["auto", "tensorflow", "jax"]) -> Backend:
    """The backend that ``wanted`` means here; imports neither.

    Raises:
        UserError: JAX is not installed.
    """
    if wanted == "auto":
        on_gpu = _NVIDIA_DRIVER.exists() and any(map(find_spec, _JAX_ON_GPU))
        return "jax" if on_gpu else "tensorflow"
    if wanted == "jax" and not find_spec("jax"):
        raise UserError(
            "backend jax: JAX is not installed; install the extra jax (CPUs) or gpu, or train with "
            "--backend tensorflow"
        )
    return wanted


def import_keras(backend: Backend | None = None) -> Any:
    """Imports Keras.

    Args:
        backend: None for the one that it runs on already, or TensorFlow.

    Raises:
        UserError: it runs on the other backend already.
    """
    if "keras" not in sys.modules:
        if backend == "jax":
            os.environ["KERAS_BACKEND"] = backend
        else:
            import_tensorflow()
    import keras

    found = keras.backend.backend()
    if backend not in (None, found):
        raise UserError(
            f"backend {backend}: in this process, Keras runs on {found} already; train in another"
        )
    return keras


def is_jax() -> bool:
    """Whether Keras, which is imported, runs on JAX."""
    return bool(import_keras().backend.backend() == "jax")


def standard_normal(shape: Any, key: Any) -> Any:
    """Normally distributed numbers, float32, that follow from the key, int32 (2,)."""
    if is_jax():
        import jax

        return jax.random.normal(jax.random.wrap_key_data(key.astype("uint32")), shape)
    import tensorflow as tf

    return tf.random.stateless_normal(shape, key)
