"""OpenVINO engine: predicts on a CPU with the graph exported from the ``.keras`` file."""

from __future__ import annotations

from typing import Any

import numpy as np

from beam.infer.engines.base import Compiled, Engine, Predicted, Runtime
from beam.infer.model_uri import ResolvedModel
from runtime.errors import UserError, first_line
from runtime.imports import import_openvino
from schemas.classes import UInt8Array

_HINT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_CAPABILITY = {"float32": "FP32", "bfloat16": "BF16", "float16": "FP16"}


class OpenVINOEngine(Engine):
    """The exported graph, extended by class ids and confidences."""

    def __init__(self, model: ResolvedModel, runtime: Runtime) -> None:
        self._openvino = import_openvino()
        self._runtime = runtime
        self._core = self._openvino.Core()
        if _CAPABILITY[runtime.precision] not in self._core.get_property(
            "CPU", "OPTIMIZATION_CAPABILITIES"
        ):
            raise UserError(
                f"this processor does not compute in {runtime.precision}; use --precision=float32"
            )
        try:
            self._graph = self._core.read_model(str(model.graph))
        except RuntimeError as error:
            raise UserError(
                f"model graph {model.graph!r} cannot be read: {first_line(error)}"
            ) from error
        super().__init__(model, runtime)

    def _logits_shape(self, shape: tuple[int, int, int, int]) -> tuple[int, ...]:
        self._graph.reshape(shape)
        return tuple(self._graph.outputs[0].shape)

    def _compile(self, shape: tuple[int, int, int, int]) -> Compiled:
        graph = self._graph.clone()
        graph.reshape(shape)
        settings = {
            "INFERENCE_PRECISION_HINT": _HINT[self._runtime.precision],
            "INFERENCE_NUM_THREADS": self._runtime.threads,
            "NUM_STREAMS": 1,
            # With pinning, every process would pin its threads to the same first cores.
            "ENABLE_CPU_PINNING": False,
        }
        headed = _with_head(self._openvino, graph, self._runtime)
        compiled = self._core.compile_model(headed, "CPU", settings)
        request = compiled.create_infer_request()

        def call(images: UInt8Array) -> Predicted:
            request.infer([images], share_inputs=True)
            ids, confidence = (request.get_output_tensor(index).data for index in (0, 1))
            return ids, confidence

        return call


def _with_head(openvino: Any, graph: Any, runtime: Runtime) -> Any:
    """Extends a graph: uint8 images to class ids, uint8, and highest probabilities, float32.

    A single logit separates two classes: the second where it is positive. Of several logits, the
    highest wins; its softmax probability is 1 / sum(exp(logits - highest)). ``flip`` and
    ``upscale`` are explained in ``Engine._compile``.
    """
    import openvino.opset15 as ops  # noqa: PLC0415, RUF100
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(graph)
    steps.input().tensor().set_element_type(openvino.Type.u8)
    graph = steps.build()
    logits = graph.outputs[0].get_node().input_value(0)
    last = ops.constant(np.array([-1]))
    if runtime.flip:
        logits = _mean_logits(ops, logits)
    if runtime.upscale > 1:
        logits = _scaled_up(ops, logits, runtime.upscale)
    if logits.shape[-1] == 1:
        ids = ops.greater(logits, ops.constant(np.float32(0)))
        confidence = ops.sigmoid(ops.absolute(logits))
    else:
        top = ops.topk(logits, 1, -1, "max", "value", "i32")
        ids = top.output(1)
        others = ops.reduce_sum(ops.exp(ops.subtract(logits, top.output(0))), last, keep_dims=True)
        confidence = ops.divide(ops.constant(np.float32(1)), others)
    results = [
        ops.result(ops.squeeze(ops.convert(ids, "u8"), last)),
        ops.result(ops.squeeze(ops.convert(confidence, "f32"), last)),
    ]
    return openvino.Model(results, graph.get_parameters())


def _scaled_up(ops: Any, logits: Any, factor: int) -> Any:
    """Logits scaled up bilinearly, as ``tf.image.resize`` does."""
    sizes = ops.constant(np.array(list(logits.shape)[1:3]) * factor)
    axes = ops.constant(np.array([1, 2]))
    return ops.interpolate(logits, sizes, "linear", "sizes", axes=axes)


def _mean_logits(ops: Any, logits: Any) -> Any:
    """Logits of the mean probabilities of a batch's first half and its mirrored second half."""
    binary = logits.shape[-1] == 1
    probabilities = ops.sigmoid(logits) if binary else ops.softmax(logits, -1)
    straight, mirrored = ops.split(probabilities, ops.constant(np.int64(0)), 2).outputs()
    reversed_columns = ops.constant(np.arange(logits.shape[2])[::-1].copy())
    unmirrored = ops.gather(mirrored, reversed_columns, ops.constant(np.int64(2)))
    mean = ops.multiply(ops.add(straight, unmirrored), ops.constant(np.float32(0.5)))
    if not binary:
        return ops.log(mean)
    return ops.subtract(ops.log(mean), ops.log(ops.subtract(ops.constant(np.float32(1)), mean)))
