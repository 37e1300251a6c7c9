"""Trains the notebooks' recipe on a published dataset, on any Keras backend.

``KERAS_BACKEND=jax python benchmarks/gpu_training.py --dataset DIR``. It needs keras, a backend,
pillow, pydantic, protobuf, pyarrow and google-crc32c, but not TensorFlow. The recipe: Adam at 1e-3,
cross-entropy, batches of 32, no augmentation. Each policy trains a network of its own; the
weights of the first then predict the test split with each policy, and the masks are compared.
"""

import argparse
import io
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
from PIL import Image

from model.losses import SegmentationLoss
from model.metrics import SegmentationMetrics
from model.unet import unet
from schemas.example import parse, read_records
from schemas.manifest import load_manifest
from schemas.stats import ConfusionMatrix

Arrays = tuple[np.ndarray, np.ndarray]


def pixels(folder: Path, split: str) -> Arrays:
    """Images (n, height, width, 3) and masks (n, height, width, 1) of a split, uint8."""
    images, masks = [], []
    for shard in load_manifest(str(folder)).shards:
        if shard.split != split:
            continue
        with (folder / shard.name).open("rb") as stream:
            for record in read_records(stream, shard.name):
                example = parse(record)
                images.append(np.asarray(Image.open(io.BytesIO(example.image))))
                masks.append(np.asarray(Image.open(io.BytesIO(example.mask)))[..., None])
    return np.stack(images), np.stack(masks)


class Seconds(keras.callbacks.Callback):
    """The seconds of each epoch, validation included; the first one compiles."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[float] = []

    def on_epoch_begin(self, *_: object) -> None:
        self.started = time.perf_counter()

    def on_epoch_end(self, *_: object) -> None:
        self.epochs.append(time.perf_counter() - self.started)


def network(args: argparse.Namespace, classes: int, policy: str) -> keras.Model:
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(args.seed)
    model = unet(classes, args.filters, normalisation=args.normalisation)
    model.compile(
        keras.optimizers.Adam(1e-3), SegmentationLoss(), metrics=[SegmentationMetrics(classes)]
    )
    return model


def predicted(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return model.predict(images, batch_size=32, verbose=0).argmax(axis=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="a published dataset")
    parser.add_argument("--filters", type=int, default=32)
    parser.add_argument("--normalisation", default="none")
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeat", type=int, default=1, help="copies of the train split")
    parser.add_argument(
        "--policies", nargs="+", default=["float32", "mixed_float16", "mixed_bfloat16"]
    )
    args = parser.parse_args()
    classes = len(load_manifest(str(args.dataset)).taxonomy)
    train, validation, test = (
        pixels(args.dataset, split) for split in ("train", "validation", "test")
    )
    train = tuple(np.concatenate([array] * args.repeat) for array in train)
    print(
        f"backend {keras.backend.backend()}, {args.filters} filters, {args.epochs} epochs of "
        f"{len(train[0])} images; test split: {len(test[0])}"
    )
    print("| policy | first epoch s | all s | images/s later | loss | accuracy | mean IoU |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    weights = None
    for policy in args.policies:
        model = network(args, classes, policy)
        clock = Seconds()
        model.fit(
            *train,
            batch_size=32,
            epochs=args.epochs,
            validation_data=validation,
            callbacks=[clock],
            verbose=0,
        )
        weights = weights or model.get_weights()
        loss = model.evaluate(*test, batch_size=32, verbose=0)[0]
        matrix = ConfusionMatrix.of(test[1][..., 0], predicted(model, test[0]), classes)
        rate = len(train[0]) * (args.epochs - 1) / max(sum(clock.epochs[1:]), 1e-9)
        print(
            f"| {policy} | {clock.epochs[0]:.1f} | {sum(clock.epochs):.1f} | {rate:.0f} | "
            f"{loss:.4f} | {matrix.pixel_accuracy():.4f} | {matrix.mean_iou():.4f} |",
            flush=True,
        )
    print(f"pixels of the test split that the weights of {args.policies[0]} predict alike:")
    reference = None
    for policy in args.policies:
        model = network(args, classes, policy)
        model.set_weights(weights)
        found = predicted(model, test[0])
        reference = found if reference is None else reference
        print(f"  {policy}: {(found == reference).mean():.4%}", flush=True)


if __name__ == "__main__":
    main()
