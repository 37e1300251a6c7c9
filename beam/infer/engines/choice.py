"""Chooses engine, precision and batch size for a job, and loads the engine."""

from __future__ import annotations

from typing import Literal, cast

from beam.infer.engines.base import Engine, Runtime, has_gpu
from beam.infer.model_uri import ResolvedModel
from runtime.processor import has_fast_bfloat16
from schemas.config import InferConfig

_BATCH_SIZE = {("openvino", "cpu"): 4, ("tensorflow", "cpu"): 16, ("tensorflow", "gpu"): 64}
"""OpenVINO is as fast with few images; small batches need less padding at the end of a bundle."""


def load_engine(model: ResolvedModel, runtime: Runtime) -> Engine:
    """Loads the engine that the runtime names, and imports no other.

    Raises:
        UserError: the model cannot be read, or does not fit the job or the processor.
    """
    if runtime.engine == "openvino":
        from beam.infer.engines.openvino import OpenVINOEngine

        return OpenVINOEngine(model, runtime)
    from beam.infer.engines.tensorflow import TensorFlowEngine

    return TensorFlowEngine(model, runtime)


def choose_runtime(config: InferConfig, processes: int, model_bytes: int = 0) -> Runtime:
    """Chooses whatever the config leaves open.

    Args:
        processes: workers on this machine; 0 if they are on others, for which this machine's GPU
            and processor say nothing.
        model_bytes: size of the model's file.
    """
    local = processes > 0
    gpu = local and has_gpu() and config.engine != "openvino"
    engine = config.engine
    if engine == "auto":
        engine = "tensorflow" if gpu else "openvino"
    precision = config.precision
    if precision == "auto":
        fast = "float16" if gpu else "bfloat16" if local and has_fast_bfloat16() else "float32"
        precision = cast("Literal['float32', 'bfloat16', 'float16']", fast)
    return Runtime(
        engine=engine,
        precision=precision,
        batch_size=config.batch_size or _BATCH_SIZE[engine, "gpu" if gpu else "cpu"],
        flip=config.flip == "on",
        upscale=config.upscale,
        processes=processes,
        model_bytes=model_bytes,
    )
