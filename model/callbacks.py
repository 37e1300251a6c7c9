"""Keras callbacks of a training: progress lines, checkpoints, early stopping, non-finite losses."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import keras

from model.checkpoint import Checkpoint, Progress
from runtime.command_line import Log
from schemas.config import TrainConfig

_LOG_INTERVAL_S = 10


class NonFiniteLossError(Exception):
    """The loss was not finite at this epoch and step, both counted from 1."""

    def __init__(self, epoch: int, step: int) -> None:
        super().__init__(epoch, step)
        self.epoch = epoch
        self.step = step


class StopOnNonFiniteLoss(keras.callbacks.Callback):
    """Stops training at the first step whose loss is not finite, before its weights are saved."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Remembers the epoch."""
        self._epoch = epoch + 1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Checks the epoch's mean loss, which stays non-finite after a single bad step."""
        if not math.isfinite((logs or {})["loss"]):
            raise NonFiniteLossError(self._epoch, batch + 1)


class LogProgress(keras.callbacks.Callback):
    """Logs progress every few seconds, and the metrics of each epoch."""

    def __init__(self, config: TrainConfig, steps: int, log: Log) -> None:
        super().__init__()
        self._epochs = config.epochs
        self._steps = steps
        self._log = log

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Starts the clock."""
        self._epoch = epoch + 1
        self._started = self._last_line = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Logs how far the epoch is, every few seconds."""
        now = time.monotonic()
        if now - self._last_line > _LOG_INTERVAL_S:
            self._last_line = now
            speed = (batch + 1) / (now - self._started)
            self._log(
                f"epoch {self._epoch}/{self._epochs}, step {batch + 1}/{self._steps}, "
                f"{speed:.2f} steps/s, loss {(logs or {})['loss']:.4f}"
            )

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Logs the epoch's duration and metrics."""
        seconds = time.monotonic() - self._started
        shown = ", ".join(f"{name} {value:.4f}" for name, value in (logs or {}).items())
        self._log(f"epoch {epoch + 1}/{self._epochs}, {seconds:.1f} s, {shown}")


class SaveCheckpoint(keras.callbacks.Callback):
    """After each epoch, saves the checkpoint and the best weights, logs metrics, may stop early.

    Args:
        log_epochs: called with the metrics of all epochs so far; sends those not sent yet.
    """

    def __init__(
        self,
        config: TrainConfig,
        progress: Progress,
        checkpoint: Checkpoint,
        log_epochs: Callable[[list[dict[str, float]]], None],
    ) -> None:
        super().__init__()
        self._config = config
        self._progress = progress
        self._checkpoint = checkpoint
        self._log_epochs = log_epochs

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Starts the clock."""
        self._started = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Saves before it logs, so that training can resume from any epoch that MLflow knows."""
        metrics = {name: float(value) for name, value in (logs or {}).items()}
        score = {
            "mean_iou": metrics["val_mean_iou"],
            "loss": -metrics["val_loss"],
            "last": float(epoch),
        }[self._config.keep]
        progress = self._progress
        seconds = time.monotonic() - self._started
        progress.epochs.append({**metrics, "epoch_seconds": seconds})
        if math.isnan(score):
            score = float("-inf")
        # The first epoch is kept whatever its score, so that there always are weights to restore.
        if score > progress.best_score or not progress.best_epoch:
            progress.best_epoch, progress.best_score = epoch + 1, score
        self._checkpoint.save(self.model, progress)
        self._log_epochs(progress.epochs)
        if has_ended(progress, self._config):
            self.model.stop_training = True


def has_ended(progress: Progress, config: TrainConfig) -> bool:
    """Whether all epochs are done, or early stopping applies."""
    done, best = len(progress.epochs), progress.best_epoch
    if done and config.keep == "last":
        # The last epoch is always the one to keep, so it says nothing of improvement.
        scores = [metrics["val_mean_iou"] for metrics in progress.epochs]
        best = scores.index(max(scores)) + 1
    stopped = config.patience and done - best >= config.patience
    return done >= config.epochs or bool(stopped)
