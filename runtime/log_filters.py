"""Silences TensorFlow's start-up messages, OpenVINO's telemetry and Beam's tracebacks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

_UNUSED_BY_US = ("matplotlib", "pandas", "sklearn")
"""Keras imports these if they are installed, for galleries, data frames and wrappers, which takes a
third of its time."""


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
        with hidden(*_UNUSED_BY_US):
            import tensorflow as tf

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
    import openvino

    return openvino


class TracebackFilter:
    """A wrapper of standard error that drops tracebacks written in a single call.

    Beam's worker prints each exception before passing it on; the code that receives it reports it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._dropped = False

    def write(self, text: str) -> int:
        """Writes ``text``, unless it is a traceback or the line break after one."""
        drop = text.startswith("Traceback (most recent call last)")
        if not drop and not (self._dropped and text == "\n"):
            self._stream.write(text)
        self._dropped = drop
        return len(text)

    def close(self) -> None:
        """Leaves standard error open.

        A library that is imported meanwhile may keep this for its log, and close it with that log:
        absl does when Prefect sets up its own.
        """

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
