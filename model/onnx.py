"""Exports a registered model to ONNX: ``python -m model.onnx --model URI --output FILE``.

Other programs predict with the file, without TensorFlow and without this project: it describes its
input, output and classes. Before it is published, its result in ONNX Runtime is compared with
Keras's. The last line of standard output is the file's path or URI.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from model.export import load_in_float32
from runtime.atomic_files import replacing
from runtime.command_line import Parser, add_tracking_uri, log, run_main
from runtime.errors import UserError, first_line
from runtime.imports import import_quickly
from runtime.mlflow_store import outages_as_unavailable
from runtime.storage import absolute, file_sha256, is_remote, writing
from schemas.classes import Taxonomy, UInt8Array
from schemas.geometry import Geometry

TOLERANCE = 1e-3
"""Largest difference from Keras's logits, as a share of the largest of them (of 1, if smaller)."""

_PACKAGES = ("onnx", "onnxruntime", "tf2onnx")


@outages_as_unavailable()
def run(model: str, output: str, tracking_uri: str) -> str:
    """Converts a version, verifies the file, and publishes it whole.

    Args:
        model: ``models:/<name>/<version>`` or ``models:/<name>@<alias>``.
        output: path or URI of the file; an existing file is replaced.
        tracking_uri: MLflow's store or server.

    Returns:
        Absolute path or URI of the file.

    Raises:
        UserError: packages are missing, there is no such model, ONNX lacks a part of it, or the
            file does not predict what the network predicts; nothing is published then.
        UnavailableError: MLflow does not answer.
    """
    _require_packages()
    place = absolute(output)
    if os.path.isdir(place):
        raise UserError(f"output {output!r}: expected the name of a file, found a folder")
    import_quickly("model.tracking")
    from model import registry, tracking

    tracking.connect(tracking_uri)
    uri = registry.version_of(model)
    facts = registry.metadata(uri)
    geometry = Geometry.model_validate(facts["geometry"])
    with registry.keras_file(uri) as path:
        network = load_in_float32(path)
        facts |= {"model_uri": uri, "keras_sha256": file_sha256(path)}
    try:
        graph = convert(network)
    except ValueError as error:
        raise UserError(f"model {uri!r} cannot be exported to ONNX: {error}") from error
    describe(graph, facts)
    if not is_remote(place):
        Path(place).parent.mkdir(parents=True, exist_ok=True)
    with writing(place) if is_remote(place) else replacing(Path(place), sync=True) as file:
        file.write_bytes(graph.SerializeToString())
        try:
            compare(file, network, geometry, (facts["height"], facts["width"]))
        except ValueError as error:
            raise UserError(
                f"model {uri!r}: the ONNX file does not predict what Keras predicts: {error}; "
                "nothing was published"
            ) from error
    return place


def convert(network: Any) -> Any:
    """Converts a network to ONNX; normalisation and class ids are parts of the graph.

    Args:
        network: from RGB, 0 to 255, to logits, in float32.

    Returns:
        An ``onnx.ModelProto`` from ``image``, uint8 (batch, height, width, 3), to ``logits``,
        float32 (batch, height, width, classes), and ``class_ids``, uint8 (batch, height, width).

    Raises:
        ValueError: ONNX has no such operation, or tf2onnx fails; the message is one line.
    """
    import onnx
    import tensorflow as tf
    import tf2onnx

    def predict(image: Any) -> dict[str, Any]:
        logits = network(image, training=False)
        # A single logit separates two classes: the second where it is positive.
        ids = logits[..., 0] > 0 if logits.shape[-1] == 1 else tf.argmax(logits, axis=-1)
        return {"logits": logits, "class_ids": tf.cast(ids, tf.uint8)}

    traced = tf.function(predict, autograph=False)
    signature = [tf.TensorSpec((None, None, None, 3), tf.uint8, name="image")]
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    # Keras wraps grouped convolutions in functions of their own, which tf2onnx does not look into.
    # Run eagerly, they become part of the graph.
    tf.config.run_functions_eagerly(True)
    try:
        captured = traced.get_concrete_function(*signature).graph.captures
        graph, _ = tf2onnx.convert.from_function(
            traced, signature, custom_op_handlers={"Erfc": (_erfc, [])}
        )
    except Exception as error:
        # It raises many exception types.
        raise ValueError(first_line(error)) from error
    finally:
        tf.config.run_functions_eagerly(False)
    if unknown := [node for node in graph.graph.node if not onnx.defs.has(node.op_type)]:
        raise ValueError(f"ONNX has no operation {unknown[0].op_type}, of {unknown[0].name}")
    _keep_constants(graph.graph, captured)
    return graph


def _erfc(context: Any, node: Any, name: str, _: Any) -> None:
    """Turns TensorFlow's Erfc, of a GELU, into 1 - Erf."""
    node.type = "Erf"
    erf = node.output[0]
    one = context.make_const(f"{name}_one", np.array(1, np.float32)).output[0]
    erfc = context.insert_new_node_on_output("Sub", erf, name=f"{name}_complement")
    erfc.input[:] = [one, erf]


def _keep_constants(graph: Any, captured: Any) -> None:
    """Turns the graph's inputs that tf2onnx has made of constants back into constants."""
    from onnx import numpy_helper

    values = {inner.name: outer for outer, inner in captured}
    used = {name for node in graph.node for name in node.input}
    for constant in [value for value in graph.input if value.name != "image"]:
        graph.input.remove(constant)
        if constant.name in used:
            value = values[constant.name].numpy()
            graph.initializer.append(numpy_helper.from_array(value, constant.name))


def describe(graph: Any, facts: dict[str, Any]) -> None:
    """Adds names of dimensions, descriptions and metadata to an ONNX model.

    Args:
        facts: of ``Plan.model_metadata``, and others; values that are no text are stored as JSON.
    """
    import onnx

    taxonomy = Taxonomy.model_validate(facts["taxonomy"])
    geometry = Geometry.model_validate(facts["geometry"])
    cut = f"-{2 * geometry.margin}" if geometry.margin else ""
    outputs = {one.name: one for one in graph.graph.output}
    image, logits, class_ids = graph.graph.input[0], outputs["logits"], outputs["class_ids"]
    for value, suffix in ((image, ""), (logits, cut), (class_ids, cut)):
        dimensions = value.type.tensor_type.shape.dim
        names = ("batch", f"height{suffix}", f"width{suffix}")
        for dimension, name in zip(dimensions, names, strict=False):
            dimension.dim_param = name
    image.doc_string = (
        "RGB, uint8, 0 to 255, of any batch; height and width leave remainder "
        f"{geometry.remainder} when divided by {geometry.multiple}. The network was trained with "
        f"images resized to height {facts['height']} and width {facts['width']} "
        f"({facts['resize']}). Normalisation is part of the graph."
    )
    several = logits.type.tensor_type.shape.dim[3].dim_value > 1
    logits.doc_string = (
        "Before softmax; the index of a channel is the class id."
        if several
        else "Before the sigmoid, whose value is the probability of class 1."
    )
    if geometry.margin:
        logits.doc_string += f" The first pixel is that at ({geometry.margin}, {geometry.margin})."
    class_ids.doc_string = "Id of the most probable class: its index in the metadata's classes."
    graph.doc_string = f"Semantic segmentation of street images, {taxonomy.name}."
    properties = {"classes": list(taxonomy.names), **facts}
    onnx.helper.set_model_props(
        graph,
        {
            key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for key, value in properties.items()
        },
    )


def compare(path: Path, network: Any, geometry: Geometry, size: tuple[int, int]) -> None:
    """Compares ONNX Runtime with Keras on random images of two sizes; logs how they differ.

    Args:
        network: the network of which the file was made.
        size: height and width of the smaller images.

    Raises:
        ValueError: ONNX Runtime refuses the file; logits differ by more than ``TOLERANCE``; or
            class ids differ where no two classes tie within it.
    """
    import onnxruntime
    import tensorflow as tf

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # Its exceptions have no common type.
        raise ValueError(f"ONNX Runtime refuses it: {first_line(error)}") from error
    largest, ties, pixels = 0.0, 0, 0
    for batch in (1, 2):
        height, width = (geometry.input_size(side + batch - 1) for side in size)
        images = _random_images(batch, height, width)
        found, ids = session.run(["logits", "class_ids"], {"image": images})
        # A GPU may compute in TF32.
        with tf.device("/CPU:0"):
            expected = network(images, training=False).numpy()
        if found.shape != expected.shape:
            raise ValueError(f"expected logits {expected.shape}, found {found.shape}")
        limit = TOLERANCE * max(1.0, float(np.abs(expected).max()))
        difference = float(np.abs(found - expected).max())
        if not difference <= limit:
            raise ValueError(f"logits differ by {difference:g}, expected at most {limit:g}")
        if expected.shape[-1] == 1:
            expected = np.concatenate([np.zeros_like(expected), expected], axis=-1)
        differing = ids != expected.argmax(axis=-1)
        margin = np.diff(np.sort(expected, axis=-1)[..., -2:])[..., 0]
        if np.any(differing & (margin > 2 * limit)):
            raise ValueError(f"{differing.sum():,} pixels have another class")
        largest, ties = max(largest, difference), ties + int(differing.sum())
        pixels += ids.size
    log(
        f"onnx: logits differ from Keras's by at most {largest:.1e}; the class of {ties:,} of "
        f"{pixels:,} pixels differs, where two tie"
    )


def _random_images(batch: int, height: int, width: int) -> UInt8Array:
    """Patches of colours with noise, RGB (batch, height, width, 3)."""
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (batch, 8, 8, 3))
    rows, columns = (np.arange(size) * 8 // size for size in (height, width))
    noise = random.integers(-40, 41, (batch, height, width, 3))
    images: UInt8Array = np.clip(colours[:, rows][:, :, columns] + noise, 0, 255).astype(np.uint8)
    return images


def _require_packages() -> None:
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise UserError(f"the export to ONNX needs {', '.join(missing)}: pip install -e '.[onnx]'")


def main(arguments: Sequence[str]) -> str:
    """The command line; returns the file's path or URI."""
    parser = Parser(
        prog="python -m model.onnx",
        description="Writes a registered model as an ONNX file, and verifies it.",
    )
    parser.add_argument("--model", required=True, help="models:/<name>/<version> or @<alias>")
    parser.add_argument("--output", required=True, help="path or URI of the file")
    add_tracking_uri(parser)
    args = parser.parse_args(arguments)
    return run(args.model, args.output, args.tracking_uri)


if __name__ == "__main__":
    sys.exit(run_main(main))
