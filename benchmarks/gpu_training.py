"""Times a training's epochs against its bare step: ``make bench BENCH=gpu_training ARGS=...``.

``python benchmarks/gpu_training.py --dataset DIR --backend jax --repeat 25``. The training is that
of ``model.train`` without MLflow: its input, augmentation, metrics and checkpoints. The bare step
is ``train_on_batch`` of the same network on one augmented batch that stays on the device. On JAX
it needs no TensorFlow, but keras, jax, kornia-rs, pillow, pydantic, protobuf, pyarrow, psutil,
tenacity and google-crc32c.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from model.backend import choose, import_keras
from model.checkpoint import Checkpoint
from model.plan import Plan, plan
from runtime.command_line import add_config, config_from
from schemas.config import TrainConfig


def repeated(chosen: Plan, times: int) -> Plan:
    """The plan with each shard of the train split read ``times`` times."""
    manifest = chosen.manifest
    train = manifest.splits["train"]
    shards = [shard for shard in manifest.shards if shard.split == "train"] * (times - 1)
    longer = train.model_copy(update={"records": train.records * times})
    update = {
        "shards": [*manifest.shards, *shards],
        "splits": {**manifest.splits, "train": longer},
    }
    return Plan(**{**vars(chosen), "manifest": manifest.model_copy(update=update)})


def trained(chosen: Plan) -> tuple[float, object]:
    """Images per second in the median epoch after the first, which compiles; and the network."""
    from model.fit import fit

    with tempfile.TemporaryDirectory() as folder:
        network, progress = fit(chosen, Checkpoint(Path(folder)), lambda _: None, log)
    epochs = [epoch["epoch_seconds"] for epoch in progress.epochs[1:]]
    return chosen.manifest.splits["train"].records / statistics.median(epochs), network


def bare(chosen: Plan, steps: int) -> float:
    """Images per second of steps on one batch."""
    from keras import ops

    from model.dataset import DatasetInput
    from model.fit import compile_network
    from model.hardware import training_scope
    from model.unet import build

    batch = next(iter(DatasetInput(chosen).training()))
    images, masks = map(ops.convert_to_tensor, batch)
    with training_scope(chosen.config):
        network = build(chosen.config, len(chosen.taxonomy))
        compile_network(network, chosen, steps)
        for _ in range(3):
            network.train_on_batch(images, masks)
        started = time.perf_counter()
        for _ in range(steps):
            # It returns the loss as a number, so the step has finished when it returns.
            network.train_on_batch(images, masks)
        return steps * len(images) / (time.perf_counter() - started)


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True, help="a published dataset")
    parser.add_argument("--repeat", type=int, default=1, help="copies of the train split")
    parser.add_argument("--steps", type=int, default=50, help="bare steps")
    add_config(parser, TrainConfig)
    args = parser.parse_args()
    config = config_from(TrainConfig, args)
    keras = import_keras(choose(config.backend))
    from model.dataset import DatasetInput
    from model.evaluation import evaluate

    chosen = repeated(plan(args.dataset, config), args.repeat)
    rate, network = trained(chosen)
    step = bare(chosen, args.steps)
    found = evaluate(network, DatasetInput(chosen), chosen.taxonomy, "test").metrics()
    print(f"backend {keras.backend.backend()}, {chosen.config.epochs} epochs, {chosen.key[:8]}")
    print(f"training {rate:.1f} images/s, bare step {step:.1f}, ratio {rate / step:.3f}")
    print(
        f"test: accuracy {found['test_pixel_accuracy']:.4f}, mean IoU {found['test_mean_iou']:.4f}"
    )


if __name__ == "__main__":
    main()
