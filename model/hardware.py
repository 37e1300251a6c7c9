"""Hardware for training: the machine's GPUs, and the precision they are fast at."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from runtime.processor import has_fast_bfloat16
from schemas.config import TrainConfig


def seed_everything(config: TrainConfig) -> None:
    """Seeds every generator and, if configured, makes every operation deterministic."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(config.seed)
    if config.deterministic == "on":
        tf.config.experimental.enable_op_determinism()


@contextlib.contextmanager
def training_scope(config: TrainConfig) -> Iterator[None]:
    """Scope in which to build a network for training: all GPUs, the chosen precision."""
    import tensorflow as tf

    devices = training_devices()
    strategy = tf.distribute.MirroredStrategy(devices).scope() if len(devices) > 1 else None
    with _dtype_policy(precision(config, _capabilities())), strategy or contextlib.nullcontext():
        yield


def encoder_scope() -> contextlib.AbstractContextManager[None]:
    """Scope in which to build an encoder: in float32 if the CPU trains.

    There, its depthwise convolutions take half as long again in bfloat16, while the other
    convolutions of a network take less time.
    """
    return contextlib.nullcontext() if training_devices() else _dtype_policy("float32")


@contextlib.contextmanager
def _dtype_policy(policy: str) -> Iterator[None]:
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def training_devices() -> list[str]:
    """The GPUs that share each batch."""
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
        return "mixed_bfloat16" if has_fast_bfloat16() else "float32"
    lowest = min(capabilities)
    if lowest >= (8, 0):
        return "mixed_bfloat16"
    return "mixed_float16" if lowest >= (7, 0) else "float32"


def _capabilities() -> list[tuple[int, int]]:
    import tensorflow as tf

    details: list[dict[str, Any]] = [
        tf.config.experimental.get_device_details(gpu)
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    return [tuple(gpu.get("compute_capability", (0, 0))) for gpu in details]
