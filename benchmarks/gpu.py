"""Times steps of training and prediction on any Keras backend.

``KERAS_BACKEND=jax python benchmarks/gpu.py --peak_tflops 989``. It needs keras, a backend and
pydantic, but not TensorFlow. Without input, one batch stays on the device; with input, each step
takes a new batch from the host's memory.
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np

from model.losses import SegmentationLoss
from model.metrics import SegmentationMetrics
from model.unet import unet

CLASSES = 13


def seconds(step: Callable[[], object], steps: int) -> float:
    """Seconds per step, after three steps that compile and warm up."""
    for _ in range(3):
        step()
    started = time.perf_counter()
    for _ in range(steps):
        # train_on_batch returns the loss as a number, so the step has finished when it returns.
        step()
    return (time.perf_counter() - started) / steps


def multiplications(model: keras.Model, height: int, width: int) -> float:
    """Multiplications of one image's forward pass, in the convolutions."""
    total = 0.0
    for layer in model.layers:
        if not hasattr(layer, "kernel"):
            continue
        kernel = int(np.prod(layer.kernel.shape))
        level = _level(layer.name)
        pixels = (height >> level) * (width >> level)
        # A transposed convolution multiplies once per pixel of its input, which is a level below.
        if isinstance(layer, keras.layers.Conv2DTranspose):
            pixels //= 4
        total += kernel * pixels
    return total


def _level(name: str) -> int:
    for prefix in ("down", "up"):
        if name.startswith(prefix):
            return int(name.removeprefix(prefix)[0])
    return 4 if name.startswith("bottom") else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--filters", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--sizes", nargs="+", default=["96x128", "384x512"], help="height x width")
    parser.add_argument(
        "--policies", nargs="+", default=["float32", "mixed_float16", "mixed_bfloat16"]
    )
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--normalisation", default="batch")
    parser.add_argument("--peak_tflops", type=float, help="of the device at 16 bits, dense")
    parser.add_argument("--xla", action="store_true", help="jit_compile=True")
    args = parser.parse_args()
    print(f"backend {keras.backend.backend()}, batch {args.batch_size}, xla {args.xla}")
    print("| filters | size | policy | train ms | with input ms | images/s | peak | predict |")
    print("| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    random = np.random.default_rng(0)
    for filters, size, policy in itertools.product(args.filters, args.sizes, args.policies):
        height, width = (int(side) for side in size.split("x"))
        keras.config.set_dtype_policy(policy)
        model = unet(CLASSES, filters, normalisation=args.normalisation)
        model.compile(
            keras.optimizers.Adam(global_clipnorm=1.0),
            SegmentationLoss(extra="dice"),
            metrics=[SegmentationMetrics(CLASSES)],
            jit_compile=True if args.xla else "auto",
        )
        shape = (args.batch_size, height, width)
        batches = [
            (
                random.integers(0, 256, (*shape, 3)).astype(np.uint8),
                random.integers(0, CLASSES, (*shape, 1)).astype(np.uint8),
            )
            for _ in range(4)
        ]
        stay = [keras.ops.convert_to_tensor(array) for array in batches[0]]
        without = seconds(lambda model=model, stay=stay: model.train_on_batch(*stay), args.steps)
        feed = itertools.cycle(batches)
        fed = seconds(lambda model=model, feed=feed: model.train_on_batch(*next(feed)), args.steps)
        predict = seconds(
            lambda model=model, feed=feed: model.predict_on_batch(next(feed)[0]), args.steps
        )
        # A backward pass costs two forward passes, and each multiplication comes with an addition.
        flops = 3 * 2 * multiplications(model, height, width) * args.batch_size / without
        share = f"{flops / args.peak_tflops / 1e12:.1%}" if args.peak_tflops else ""
        print(
            f"| {filters} | {size} | {policy} | {without * 1e3:.1f} | {fed * 1e3:.1f} | "
            f"{args.batch_size / without:.0f} | {share} | {args.batch_size / predict:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
