"""Exports to OpenVINO: ``python -m model.export --model FILE.keras --output FOLDER``.

CPUs predict with the graph: OpenVINO starts in a fraction of TensorFlow's time and memory.
The last line of standard output is the graph's path.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.backend import import_keras, is_jax
from runtime.child_processes import run_module
from runtime.command_line import Parser, run_main
from runtime.errors import UserError, first_line
from runtime.imports import import_openvino
from schemas.layout import GRAPH_SOURCE, OPENVINO_GRAPH


def export_openvino(keras_file: Path, folder: Path) -> Path:
    """Writes ``unet.xml`` and ``unet.bin`` with Keras's own export.

    The graph takes any batch, height and width that the network takes. It computes in float32
    whatever the network was trained in (the engine lowers the precision), and records the hash of
    ``keras_file``.

    Args:
        keras_file: read in Keras's safe mode.
        folder: created if it is missing.

    Returns:
        Path of ``unet.xml``; of the files written, only it and ``unet.bin`` remain.

    Raises:
        UserError: the file cannot be read, or OpenVINO does not support a part of the network.
    """
    openvino = import_openvino()
    network = load_in_float32(keras_file)
    folder.mkdir(parents=True, exist_ok=True)
    graph, raw = folder / OPENVINO_GRAPH, folder / f"raw-{OPENVINO_GRAPH}"
    try:
        network.export(str(raw), format="openvino", verbose=False)
    except Exception as error:
        raise UserError(
            f"model file {str(keras_file)!r} cannot be exported to OpenVINO: {first_line(error)}; "
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


def export_by_tensorflow(keras_file: Path, folder: Path) -> None:
    """Calls ``export_openvino``, in a process of its own if this one's Keras runs on JAX.

    Raises:
        UserError: as for ``export_openvino``.
    """
    if is_jax():
        run_module("model.export", f"--model={keras_file}", f"--output={folder}")
    else:
        export_openvino(keras_file, folder)


def load_in_float32(keras_file: Path) -> Any:
    """Loads a network that computes in float32 whatever it was trained in; see ``load_network``."""
    network = load_network(keras_file)
    _compute_in_float32(network)
    return network


def load_network(keras_file: Path) -> Any:
    """Loads a network in Keras's safe mode.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return import_keras().saving.load_model(keras_file, compile=False, safe_mode=True)
    except Exception as error:
        # Keras raises many exception types on files that are not its own.
        raise UserError(
            f"model file {str(keras_file)!r} cannot be loaded: {first_line(error)}"
        ) from error


def _compute_in_float32(network: Any) -> None:
    for layer in getattr(network, "layers", ()):
        layer.dtype_policy = "float32"
        _compute_in_float32(layer)


def main(arguments: Sequence[str]) -> str:
    """The command line; returns the graph's path."""
    parser = Parser(
        prog="python -m model.export", description="Writes a .keras file as an OpenVINO graph."
    )
    parser.add_argument("--model", required=True, help="a .keras file")
    parser.add_argument("--output", required=True, help="folder of the graph")
    args = parser.parse_args(arguments)
    return str(export_openvino(Path(args.model), Path(args.output)))


if __name__ == "__main__":
    sys.exit(run_main(main))
