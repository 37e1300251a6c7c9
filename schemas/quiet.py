"""TensorFlow without its greetings, OpenVINO without its reports."""

from __future__ import annotations

import os
import sys
from typing import Any, cast


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
