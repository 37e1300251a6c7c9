"""Times our training loop against a bare ``model.fit``: ``make bench BENCH=training``.

Both train the same network on the same images in one process, in turns. The bare loop is ``fit`` on
arrays in memory with a plain loss; ours includes its input, augmentation, metrics, checkpoints and
MLflow. Both validate. The first epoch of each round, which compiles, is left out. CPU time varies
less than wall time on a shared machine, so both are printed. The input is also measured alone.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np

from beam.ingest.pipeline import run as ingest
from beam.runners.run import pipeline_options
from flows.scenes import write_scenes
from model import tracking
from model.checkpoint import Checkpoint
from model.dataset import DatasetInput
from model.fit import fit, optimizer
from model.hardware import training_scope
from model.plan import Plan, plan
from model.unet import build
from schemas.classes import VOID
from schemas.config import IngestConfig, TrainConfig


def now() -> tuple[float, float]:
    """Wall seconds, and CPU seconds of all threads of this process."""
    return time.perf_counter(), time.process_time()


def ours(chosen: Plan, scratch: Path) -> tuple[float, float]:
    """Training images per second of our loop, by wall time and by CPU time."""
    ends: list[tuple[float, float]] = []
    with (
        tempfile.TemporaryDirectory(dir=scratch) as folder,
        tracking.training_run(chosen, None, None, print, lambda _: None) as run,
    ):

        def log(epochs: list[dict[str, float]]) -> None:
            run.log_epochs(epochs)
            ends.append(now())

        fit(chosen, Checkpoint(Path(folder)), log, lambda _: None)
    return rate(chosen, ends)


def bare(chosen: Plan) -> tuple[float, float]:
    """Training images per second of ``fit`` on arrays in memory, by wall time and by CPU time."""
    source = DatasetInput(chosen)

    def arrays(split: str) -> tuple[np.ndarray, np.ndarray]:
        images, masks = zip(*source.pairs(split), strict=True)
        return np.stack(images), np.stack(masks)[..., None]

    images, masks = arrays("train")
    # In the same precision.
    with training_scope(chosen.config):
        model = build(chosen.config, len(chosen.taxonomy))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=VOID)
        adam = optimizer(chosen, source.steps("train") * chosen.config.epochs)
        model.compile(adam, loss, jit_compile=False)
    ends: list[tuple[float, float]] = []
    model.fit(
        images,
        masks,
        batch_size=chosen.config.batch_size,
        epochs=chosen.config.epochs,
        validation_data=arrays("validation"),
        validation_batch_size=chosen.config.batch_size,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: ends.append(now()))],
    )
    return rate(chosen, ends)


def rate(chosen: Plan, ends: list[tuple[float, float]]) -> tuple[float, float]:
    images = chosen.manifest.splits["train"].records * (len(ends) - 1)
    clock, cpu = (last - first for first, last in zip(ends[0], ends[-1], strict=True))
    return images / clock, images / cpu


def input_alone(chosen: Plan) -> float:
    """Images per second of the stream of training batches, without training."""
    stream = iter(DatasetInput(chosen).training())
    next(stream)
    started = time.perf_counter()
    count = sum(len(images) for images, _ in stream)
    return count / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", help="street images and masks; synthetic scenes without")
    parser.add_argument("--filters", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        raw = args.raw or write_scenes(str(scratch / "raw"), 160)
        data = ingest(
            raw,
            str(scratch / "data"),
            IngestConfig(height=96, width=128, resize="nearest"),
            pipeline_options([]),
        )
        tracking.connect(f"sqlite:///{scratch}/mlflow.db")
        config = TrainConfig(
            architecture="unet", filters=args.filters, epochs=args.epochs, batch_size=8
        )
        chosen = plan(str(data), config)
        ratios = []
        for number in range(1, args.rounds + 1):
            plainly, wholly = bare(chosen), ours(chosen, scratch)
            ratios.append([mine / theirs for mine, theirs in zip(wholly, plainly, strict=True)])
            print(
                f"round {number}: bare {plainly[0]:.2f} images/s, ours {wholly[0]:.2f}, ratio "
                f"{ratios[-1][0]:.3f}; a CPU second: bare {plainly[1]:.2f}, ours {wholly[1]:.2f}, "
                f"ratio {ratios[-1][1]:.3f}",
                flush=True,
            )
        clock, cpu = (statistics.median(some) for some in zip(*ratios, strict=True))
        print(f"median ratio {clock:.3f} by the clock, {cpu:.3f} by CPU time")
        for cache_mib in (2048, 0):
            for augment in ("off", "on"):
                changes = {"cache_mib": cache_mib, "augment": augment, "epochs": 40}
                alone = plan(str(data), config.model_copy(update=changes))
                where = "memory" if cache_mib else "shards"
                speed = input_alone(alone)
                print(f"input from {where}, augmentation {augment}: {speed:.0f} images/s")


if __name__ == "__main__":
    sys.exit(main())
