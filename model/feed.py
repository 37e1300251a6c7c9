"""Feeds numbered batches to Keras: one is made in a thread while the network works on another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import keras

from model.backend import is_jax
from runtime.errors import UserError

_BATCHES_AHEAD = 2


class Feed:
    """Batches for ``Model.fit``.

    Args:
        batch: makes batch ``index`` of numpy arrays, in nested tuples; the first axis may vary.
        count: number of batches.
        prepare: turns the parts of a batch into images and masks, as one compiled operation. If it
            is None, ``batch`` makes images and masks.

    Attributes:
        failure: what ``batch`` raised last; TensorFlow hides it in an error of its own.
    """

    def __init__(
        self, batch: Callable[[int], Any], count: int, prepare: Callable[..., Any] | None = None
    ) -> None:
        self._batch = batch
        self._count = count
        self._prepare = prepare
        self.failure: UserError | None = None

    def for_keras(self) -> Any:
        """What ``fit`` takes: a ``tf.data.Dataset`` or, on JAX, a ``PyDataset``."""
        if is_jax():
            return _Batches(self._made, self._count, self._prepare)
        return self._tensorflow_dataset()

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """Yields images and masks, arrays of the backend."""
        return iter(self.for_keras())

    def _made(self, index: int) -> Any:
        try:
            return self._batch(index)
        except UserError as error:
            self.failure = error
            raise

    def _tensorflow_dataset(self) -> Any:
        import tensorflow as tf

        first = self._made(0)
        arrays = keras.tree.flatten(first)

        def batch(index: Any) -> Any:
            made = tf.numpy_function(
                lambda number: keras.tree.flatten(self._made(int(number))),
                [index],
                [array.dtype for array in arrays],
            )
            for tensor, array in zip(made, arrays, strict=True):
                tensor.set_shape((None, *array.shape[1:]))
            return keras.tree.pack_sequence_as(first, made)

        # Not from_generator: on Python 3.11 it sets glibc's threshold for mapped blocks to 128 KiB,
        # and each step then takes all its memory anew from the kernel.
        stream = tf.data.Dataset.range(self._count).map(batch)
        if self._prepare:
            stream = stream.map(self._prepare, _BATCHES_AHEAD, deterministic=True)
        options = tf.data.Options()
        # With the autotuner, the end of a stream waits up to a minute until it wakes.
        options.autotune.enabled = False
        return stream.prefetch(_BATCHES_AHEAD).with_options(options)


class _Batches(keras.utils.PyDataset):
    """Batches by index, whose next one a thread makes in advance."""

    def __init__(
        self, batch: Callable[[int], Any], count: int, prepare: Callable[..., Any] | None
    ) -> None:
        import jax

        super().__init__()
        self._batch = batch
        self._count = count
        self._prepare = jax.jit(prepare) if prepare else None
        self._pool = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[Any]] | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        expected, made = self._next or (-1, None)
        batch = made.result() if made and expected == index else self._batch(index)
        ahead = index + 1
        self._next = (ahead, self._pool.submit(self._batch, ahead)) if ahead < self._count else None
        return self._prepare(*batch) if self._prepare else batch
