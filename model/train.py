"""A published dataset to a registered model: ``python -m model.train --dataset DIR``.

The last line of standard output is the model's URI.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.evaluate import draw_confusion, draw_curves, evaluate, write_class_table
from schemas.cli import add_config, config_from, run_main
from schemas.config import TrainConfig
from schemas.errors import UserError
from schemas.layout import SPLITS, TRACKING_URI
from schemas.manifest import Manifest, load_manifest
from schemas.quiet import import_tensorflow


def run(dataset: str, config: TrainConfig, tracking_uri: str, *, reuse: bool = False) -> str:
    """Trains, evaluates on the test split, logs and registers.

    Args:
        dataset: a published dataset folder.
        tracking_uri: MLflow's store or server.
        reuse: returns the version trained before with the same dataset and config, if there is.

    Returns:
        ``models:/<name>/<version>``.

    Raises:
        UserError: the dataset cannot be trained on, or the store does not answer.
    """
    folder = Path(dataset).absolute()
    manifest = load_manifest(folder)
    check_trainable(manifest)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from model import tracking

    tracking.connect(tracking_uri)
    key = hashlib.sha256(f"{manifest.fingerprint} {config.sha256()}".encode()).hexdigest()
    if reuse and (known := tracking.find_trained(config.model_name, key)):
        tracking.set_alias(known, config.alias)
        say(f"nothing has changed: {known} was trained on this dataset with this configuration")
        return known

    import_tensorflow()
    say(f"{manifest.splits['train'].records} training images, {config.epochs} epochs")
    with (
        tracking.training_run(config, manifest, folder),
        tempfile.TemporaryDirectory(prefix="lyft-train-") as scratch,
    ):
        model, history = fit(folder, manifest, config)
        metrics, matrix = evaluate(model, folder, manifest, config, Path(scratch))
        tracking.log_metrics(metrics)
        draw_curves(history, Path(scratch, "curves.png"))
        write_class_table(matrix, manifest, Path(scratch, "classes.csv"))
        draw_confusion(matrix, manifest, Path(scratch, "confusion.png"))
        for name in ("curves.png", "classes.csv", "confusion.png", "examples.png"):
            tracking.log_file(Path(scratch, name))
        keras_file = Path(scratch, "unet.keras")
        model.save(keras_file)
        uri = tracking.register(keras_file, config, manifest, metrics, key)
    say(", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    return uri


def check_trainable(manifest: Manifest) -> None:
    """Refuses a dataset that the network cannot learn from, before any work.

    Raises:
        UserError: says what is missing.
    """
    config = manifest.config
    if not config.height or config.height % 16 or config.width % 16:
        raise UserError(
            f"dataset {manifest.name} holds images of {config.width or 'any'}x"
            f"{config.height or 'any'}; the network takes multiples of 16: "
            "ingest with such a --height and --width"
        )
    empty = [split for split in SPLITS if not manifest.splits[split].records]
    if empty:
        raise UserError(
            f"dataset {manifest.name} has no record in {', '.join(empty)}; ingest more pairs, or "
            "with a smaller --block_length or --split_by=image"
        )


def fit(
    folder: Path, manifest: Manifest, config: TrainConfig
) -> tuple[Any, dict[str, list[float]]]:
    """Trains a new network and returns it, with the weights of its best epoch, and its history.

    The best epoch has the lowest validation loss.
    """
    import keras

    from model import tracking
    from model.dataset import batches
    from model.metrics import SegmentationMetrics
    from model.unet import unet
    from schemas.classes import VOID

    keras.utils.set_random_seed(config.seed)
    classes = len(manifest.taxonomy)
    model = unet(classes, config.filters, config.dropout)
    model.compile(
        optimizer=keras.optimizers.Adam(config.learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=VOID),
        metrics=[SegmentationMetrics(classes)],
        # XLA halves the speed on a CPU, and its compilation outlasts a small run on a GPU.
        jit_compile=False,
    )
    steps = -(-manifest.splits["train"].records // config.batch_size)
    best = keras.callbacks.EarlyStopping(
        "val_loss", patience=config.epochs, restore_best_weights=True
    )
    fitted = model.fit(
        batches(folder, manifest, "train", config.batch_size, config.seed),
        validation_data=batches(folder, manifest, "validation", config.batch_size),
        epochs=config.epochs,
        shuffle=False,
        verbose=0,
        callbacks=[
            best,
            keras.callbacks.TerminateOnNaN(),
            _progress(config.epochs, steps, tracking.log_metrics),
        ],
    )
    if not any(math.isfinite(loss) for loss in fitted.history.get("val_loss", [])):
        raise UserError(
            f"the loss was not finite in the first epoch; lower --learning_rate "
            f"(it is {config.learning_rate})"
        )
    return model, fitted.history


def say(text: str) -> None:
    """A line for the person who watches; standard output is for the result alone."""
    print(f"train: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> str:
    """The command line; returns the model's URI."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m model.train",
        description="Trains the U-Net on a published dataset.",
    )
    parser.add_argument("--dataset", required=True, help="folder that beam.ingest published")
    parser.add_argument(
        "--tracking_uri", default=TRACKING_URI, help=f"MLflow store (default: {TRACKING_URI})"
    )
    parser.add_argument(
        "--reuse", action="store_true", help="return the version trained with the same input"
    )
    add_config(parser, TrainConfig)
    args = parser.parse_args(arguments)
    config = config_from(TrainConfig, args)
    return run(args.dataset, config, args.tracking_uri, reuse=args.reuse)


def _progress(epochs: int, steps: int, log: Any) -> Any:
    """A Keras callback that prints every few seconds and logs each epoch to MLflow."""
    import keras

    class Progress(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
            self._epoch = epoch + 1
            self._started = self._said = time.monotonic()

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            now = time.monotonic()
            if now - self._said > 10:
                self._said = now
                speed = (batch + 1) / (now - self._started)
                say(
                    f"epoch {self._epoch}/{epochs}, step {batch + 1}/{steps}, "
                    f"{speed:.2f} steps/s, loss {(logs or {})['loss']:.4f}"
                )

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seconds = time.monotonic() - self._started
            shown = ", ".join(f"{name} {value:.4f}" for name, value in (logs or {}).items())
            say(f"epoch {epoch + 1}/{epochs}, {seconds:.1f} s, {shown}")
            log({**(logs or {}), "epoch_seconds": seconds}, step=epoch + 1)

    return Progress()


if __name__ == "__main__":
    sys.exit(run_main(main))
