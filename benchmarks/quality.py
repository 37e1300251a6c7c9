"""Compares training recipes on the same images: ``make bench BENCH=quality RAW=folder``.

Ingests ``RAW`` split by blocks, trains each recipe in its own process, and prints each recipe's
scores on the test split, over all pixels of the frames themselves, and how long it took.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SMALL = {"height": 96, "width": 128, "resize": "nearest"}
"""The notebooks' images."""

NOTEBOOK = {
    "architecture": "unet",
    "epochs": 40,
    "filters": 32,
    "dropout": 0.3,
    "class_weights": "none",
    "batch_size": 32,
    "augment": "off",
    "learning_rate": 1e-3,
    "schedule": "constant",
    "warmup": 0,
    "loss": "cross-entropy",
    "normalisation": "none",
    "keep": "last",
}

PLAIN = {
    "architecture": "unet",
    "filters": 16,
    "epochs": 40,
    "batch_size": 8,
    "dropout": 0.3,
    "colour": 0.2,
    "weather": 0,
    "class_weights": "none",
}
"""The network of the notebooks with 16 filters, normalisation, augmentation and Dice."""

RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "notebook": (SMALL, NOTEBOOK),
    "unet at 96x128": (SMALL, PLAIN),
    "unet": ({}, PLAIN),
    "default": ({}, {}),
    "default, float32": ({}, {"precision": "float32"}),
    "default, batch 8": ({}, {"batch_size": 8}),
    "default without ImageNet": ({}, {"encoder_weights": "none"}),
    "default without weather": ({}, {"weather": 0}),
    "default without augmentation": ({}, {"augment": "off"}),
    "default without Dice": ({}, {"loss": "cross-entropy"}),
    "default without class weights": ({}, {"class_weights": "none"}),
    "default, full class weights": ({}, {"class_weights": "manifest"}),
    "default without logit adjustment": ({}, {"logit_adjustment": 0}),
}
"""Parameters of the ingest and of the training that differ from the defaults."""


def options(parameters: dict[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in parameters.items()]


def ingest(raw: str, folder: Path, parameters: dict[str, Any]) -> str:
    """Ingests the pairs into a dataset with a test split of several blocks; returns its folder."""
    command = [sys.executable, "-m", "beam.ingest", f"--source={raw}", f"--output={folder}/data"]
    done = subprocess.run(
        [*command, "--validation=0.1", "--test=0.2", *options(parameters)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-1]


def train(dataset: str, folder: Path, name: str, seed: int) -> dict[str, Any]:
    """Trains one recipe; returns its metrics, and seconds of the epochs and of the process."""
    import mlflow

    store = f"sqlite:///{folder}/mlflow.db"
    model = f"recipe-{list(RECIPES).index(name)}-{seed}"
    parameters = {"model_name": model, "seed": seed, **RECIPES[name][1]}
    started = time.perf_counter()
    subprocess.run(
        [
            *(sys.executable, "-m", "model.train", f"--dataset={dataset}", "--promote=never"),
            *(f"--tracking_uri={store}", f"--state={folder}/state"),
            *options(parameters),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    seconds = time.perf_counter() - started
    client = mlflow.MlflowClient(store)
    (version,) = client.search_model_versions(f"name = '{model}'")
    run = client.get_run(version.run_id)
    trained = sum(one.value for one in client.get_metric_history(version.run_id, "epoch_seconds"))
    return {**run.data.metrics, "seconds": seconds, "training_seconds": trained}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", required=True, help="street images and masks")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        print("| recipe | seed | accuracy | mean IoU | challenge | training s | process s |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
        for name, seed in itertools.product(args.recipes, args.seeds):
            # A second ingest with the same parameters finds its dataset and returns it.
            metrics = train(ingest(args.raw, folder, RECIPES[name][0]), folder, name, seed)
            figures = [
                f"{metrics['test_frame_pixel_accuracy']:.4f}",
                f"{metrics['test_frame_mean_iou']:.4f}",
                f"{metrics['test_challenge_score']:.4f}",
                f"{metrics['training_seconds']:.0f}",
                f"{metrics['seconds']:.0f}",
            ]
            print(f"| {name} | {seed} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
