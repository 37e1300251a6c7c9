"""TensorFlow without its greetings, OpenVINO without its reports, Beam without its tracebacks."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO, cast


def import_tensorflow() -> Any:
    """Imports TensorFlow with standard error closed to the lines that no setting silences.

    Python exceptions are raised as ever; what TensorFlow logs after its import is kept to errors.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        import tensorflow as tf

        # The first look for devices is what complains of a missing GPU.
        tf.config.list_physical_devices()
        return tf
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def import_openvino() -> Any:
    """Imports OpenVINO without its telemetry, which tells its maker of each import."""
    sys.modules.setdefault("openvino_telemetry", cast(Any, None))
    import openvino

    return openvino


class WithoutTracebacks:
    """Standard error without the tracebacks that are printed in one piece.

    Beam's worker prints each exception before it hands it over; who gets it says what is to say.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._dropped = False

    def write(self, text: str) -> int:
        """Writes all but a traceback and the end of its line."""
        drop = text.startswith("Traceback (most recent call last)")
        if not drop and not (self._dropped and text == "\n"):
            self._stream.write(text)
        self._dropped = drop
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
