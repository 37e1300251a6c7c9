"""Compares training recipes on the same images: ``make bench BENCH=quality RAW=folder``.

Ingests ``RAW`` split by blocks, trains each recipe in its own process for the same number of
epochs, and prints each recipe's scores on the test split and how long it took.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

NOTEBOOK = {
    "filters": 32,
    "batch_size": 32,
    "augment": "off",
    "learning_rate": 1e-3,
    "schedule": "constant",
    "warmup": 0,
    "loss": "cross-entropy",
    "normalisation": "none",
    "keep": "last",
}

RECIPES: dict[str, dict[str, Any]] = {
    "notebook": NOTEBOOK,
    "default": {},
    "default, 32 filters": {"filters": 32},
    "default, batch 32": {"batch_size": 32},
    "default without normalisation": {"normalisation": "none"},
    "default without augmentation": {"augment": "off"},
    "default without Dice": {"loss": "cross-entropy"},
    "default, rate 1e-3": {"learning_rate": 1e-3},
    "default, class weights": {"class_weights": "manifest"},
}


@contextmanager
def a_dataset(raw: str, folder: Path) -> Iterator[str]:
    """Ingests the pairs into a dataset with a test split of several blocks; yields its folder."""
    command = [sys.executable, "-m", "beam.ingest", f"--source={raw}", f"--output={folder}/data"]
    done = subprocess.run(
        # Nothing is left out, so that the figures compare with those of before.
        [*command, "--validation=0.15", "--test=0.2", "--max_leak=1"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    yield done.stdout.splitlines()[-1]


def train(dataset: str, folder: Path, name: str, epochs: int) -> dict[str, Any]:
    """Trains one recipe; returns its test metrics, history and seconds of the whole process."""
    import mlflow

    store = f"sqlite:///{folder}/mlflow.db"
    model = f"recipe-{list(RECIPES).index(name)}"
    options = {"epochs": epochs, "model_name": model, **RECIPES[name]}
    started = time.perf_counter()
    subprocess.run(
        [
            *(sys.executable, "-m", "model.train", f"--dataset={dataset}", "--promote=never"),
            *(f"--tracking_uri={store}", f"--state={folder}/state"),
            *(f"--{key}={value}" for key, value in options.items()),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    seconds = time.perf_counter() - started
    client = mlflow.MlflowClient(store)
    (version,) = client.search_model_versions(f"name = '{model}'")
    run = client.get_run(version.run_id)

    def history(metric: str) -> list[float]:
        return [one.value for one in client.get_metric_history(version.run_id, metric)]

    return {
        **run.data.metrics,
        "seconds": seconds,
        "val_mean_iou": history("val_mean_iou"),
        "clock": list(accumulate(history("epoch_seconds"))),
    }


def reached(found: dict[str, Any], level: float) -> float | None:
    """Seconds of training until validation first reaches a mean IoU of ``level``; else None."""
    for score, clock in zip(found["val_mean_iou"], found["clock"], strict=True):
        if score >= level:
            return float(clock)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", required=True, help="street images and masks")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    args = parser.parse_args()
    level = None
    with tempfile.TemporaryDirectory() as scratch, a_dataset(args.raw, Path(scratch)) as dataset:
        print(f"{args.epochs} epochs; goal: the best validation mean IoU of the first recipe")
        print(
            "| recipe | loss | accuracy | mean IoU | challenge | training s | process s | goal s |"
        )
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
        for name in args.recipes:
            found = train(dataset, Path(scratch), name, args.epochs)
            level = max(found["val_mean_iou"]) if level is None else level
            goal = reached(found, level)
            figures = [
                f"{found['test_loss']:.4f}",
                f"{found['test_pixel_accuracy']:.4f}",
                f"{found['test_mean_iou']:.4f}",
                f"{found['test_challenge_score']:.4f}",
                f"{found['clock'][-1]:.0f}",
                f"{found['seconds']:.0f}",
                "never" if goal is None else f"{goal:.0f}",
            ]
            print(f"| {name} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
