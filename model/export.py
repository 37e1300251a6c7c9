"""A network as an OpenVINO graph: ``python -m model.export --model FILE.keras --output FOLDER``.

A CPU predicts with the graph: OpenVINO is up in a fraction of the time and memory of TensorFlow.
The last line of standard output is the graph's path.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from schemas.cli import run_main
from schemas.errors import UserError
from schemas.layout import GRAPH_SOURCE, OPENVINO_GRAPH
from schemas.quiet import import_openvino, import_tensorflow


def export_openvino(keras_file: Path, folder: Path) -> Path:
    """Writes ``unet.xml`` and ``unet.bin`` by Keras's own export.

    The graph takes any batch, height and width that the network takes, computes in float32 whatever
    the network was trained in (the engine lowers the precision), and notes the hash of the file.

    Args:
        keras_file: read in Keras's safe mode.
        folder: made where it is missing.

    Returns:
        Path of the graph; the folder holds nothing else of ours.

    Raises:
        UserError: the file cannot be read, or OpenVINO has no word for a part of the network.
    """
    openvino = import_openvino()
    import_tensorflow()
    import keras

    try:
        network = keras.saving.load_model(keras_file, compile=False, safe_mode=True)
    except Exception as error:
        # Keras raises many types on files that are none of its own.
        raise UserError(
            f"model file {str(keras_file)!r} cannot be loaded: {_reason(error)}"
        ) from error
    _compute_in_float32(network)
    folder.mkdir(parents=True, exist_ok=True)
    graph, raw = folder / OPENVINO_GRAPH, folder / f"raw-{OPENVINO_GRAPH}"
    try:
        network.export(str(raw), format="openvino", verbose=False)
    except Exception as error:
        raise UserError(
            f"model file {str(keras_file)!r} cannot be exported to OpenVINO: {_reason(error)}; "
            "predict with --engine=tensorflow"
        ) from error
    model = openvino.Core().read_model(raw)
    digest = hashlib.sha256(keras_file.read_bytes()).hexdigest()
    model.set_rt_info(digest, GRAPH_SOURCE)
    openvino.save_model(model, graph, compress_to_fp16=False)
    del model
    raw.unlink()
    raw.with_suffix(".bin").unlink()
    return graph


def _compute_in_float32(network: Any) -> None:
    for layer in getattr(network, "layers", ()):
        layer.dtype_policy = "float32"
        _compute_in_float32(layer)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def main(arguments: Sequence[str]) -> str:
    """The command line; returns the graph's path."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m model.export",
        description="Writes a .keras file as an OpenVINO graph.",
    )
    parser.add_argument("--model", required=True, help="a .keras file")
    parser.add_argument("--output", required=True, help="folder of the graph")
    args = parser.parse_args(arguments)
    return str(export_openvino(Path(args.model), Path(args.output)))


if __name__ == "__main__":
    sys.exit(run_main(main))
