"""Hardware for training: the machine's GPUs, and the precision they are fast at."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from model.backend import import_keras, is_jax
from runtime.imports import hidden
from runtime.processor import has_fast_bfloat16
from schemas.config import TrainConfig

_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def seed_everything(config: TrainConfig) -> None:
    """Seeds every generator and, if configured, makes every operation deterministic."""
    keras = import_keras()
    # On JAX, Keras would import TensorFlow to seed it.
    with hidden("tensorflow") if is_jax() else contextlib.nullcontext():
        keras.utils.set_random_seed(config.seed)
    if config.deterministic == "off":
        return
    if is_jax():
        # XLA reads it when the first operation is compiled.
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DETERMINISTIC}".strip()
        return
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()


@contextlib.contextmanager
def training_scope(config: TrainConfig) -> Iterator[None]:
    """Scope in which to build a network for training: the GPUs, the chosen precision."""
    with _dtype_policy(precision(config, _capabilities())), _strategy():
        yield


def _strategy() -> contextlib.AbstractContextManager[Any]:
    """TensorFlow's scope for several GPUs; JAX trains on one."""
    devices = training_devices()
    if is_jax() or len(devices) < 2:
        return contextlib.nullcontext()
    import tensorflow as tf

    scope: contextlib.AbstractContextManager[Any] = tf.distribute.MirroredStrategy(devices).scope()
    return scope


def encoder_scope() -> contextlib.AbstractContextManager[None]:
    """Scope in which to build an encoder: in float32 if the CPU trains.

    There, its depthwise convolutions take half as long again in bfloat16, while the other
    convolutions of a network take less time.
    """
    return contextlib.nullcontext() if training_devices() else _dtype_policy("float32")


@contextlib.contextmanager
def _dtype_policy(policy: str) -> Iterator[None]:
    keras = import_keras()
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def training_devices() -> list[str]:
    """The GPUs that share each batch, or, on JAX, the one that takes it."""
    if is_jax():
        return [str(device) for device in _jax_gpus()][:1]
    import tensorflow as tf

    return [device.name for device in tf.config.list_logical_devices("GPU")]


def precision(config: TrainConfig, capabilities: list[tuple[int, int]]) -> str:
    """The dtype policy: with ``auto``, 16 bits where they are faster.

    Args:
        capabilities: compute capability of each GPU; bfloat16 has tensor cores from 8.0 on,
            float16 from 7.0 on. Empty if the CPU trains.
    """
    if config.precision != "auto":
        return config.precision
    if not capabilities:
        # The processor's instructions are known to help TensorFlow alone.
        fast = has_fast_bfloat16() and not is_jax()
        return "mixed_bfloat16" if fast else "float32"
    lowest = min(capabilities)
    if lowest >= (8, 0):
        return "mixed_bfloat16"
    return "mixed_float16" if lowest >= (7, 0) else "float32"


def _capabilities() -> list[tuple[int, int]]:
    if is_jax():
        # The attribute reads e.g. "9.0".
        versions = [gpu.compute_capability.split(".") for gpu in _jax_gpus()]
        return [(int(major), int(minor)) for major, minor in versions]
    import tensorflow as tf

    details: list[dict[str, Any]] = [
        tf.config.experimental.get_device_details(gpu)
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    return [tuple(gpu.get("compute_capability", (0, 0))) for gpu in details]


def _jax_gpus() -> list[Any]:
    import jax

    return [device for device in jax.devices() if device.platform == "gpu"]
