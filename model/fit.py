"""The training itself: a new network, its loss and optimizer, all epochs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from model.callbacks import BadLossError, KeepState, Say, ShowProgress, StopOnBadLoss, has_ended
from model.checkpoint import Checkpoint, Progress
from model.dataset import Input
from model.hardware import prepare, training_scope
from model.losses import SegmentationLoss
from model.metrics import SegmentationMetrics
from model.plan import Plan
from model.unet import build
from schemas.errors import UserError


def fit(
    plan: Plan,
    checkpoint: Checkpoint,
    log: Callable[[list[dict[str, float]]], None],
    say: Say,
    start: Path | None = None,
) -> tuple[keras.Model, Progress]:
    """Trains from where the checkpoint is, or from the beginning.

    Args:
        log: takes the metrics of all epochs so far at the end of each.
        start: ``.keras`` file whose weights a new training begins with.

    Returns:
        The network with the weights that ``config.keep`` asks for, in float32 and apart from
        any GPU's strategy; and the metrics by epoch.

    Raises:
        UserError: the loss is not finite, or the weights to begin with do not fit.
    """
    config = plan.config
    prepare(config)
    source = Input(plan)
    steps = source.steps("train")
    with training_scope(config):
        model = build(config, len(plan.taxonomy))
        if start is not None:
            take_weights(model, start)
        model.compile(
            optimizer=optimizer(plan, steps * config.epochs),
            loss=SegmentationLoss(
                plan.class_weights(),
                "none" if config.loss == "cross-entropy" else config.loss,
                config.loss_weight,
            ),
            metrics=[SegmentationMetrics(len(plan.taxonomy))],
            jit_compile=config.xla == "on",
        )
        model.optimizer.build(model.trainable_variables)
        progress = checkpoint.restore(model)
        if progress.epochs:
            say(f"going on after epoch {len(progress.epochs)}, from {checkpoint.folder}")
        if not has_ended(progress, config):
            try:
                _run_epochs(model, source, progress, checkpoint, log, say)
            except BadLossError as error:
                raise UserError(_explain(error, plan, progress, checkpoint)) from error

    final = build(config, len(plan.taxonomy))
    checkpoint.restore_best(final)
    return final, progress


def optimizer(plan: Plan, steps: int) -> keras.optimizers.Optimizer:
    """Adam with the configured schedule over ``steps`` steps.

    Cosine decay to 0: Loshchilov and Hutter, "SGDR", 2017, without restarts; the warm-up is
    linear from 0.
    """
    config = plan.config
    rate: Any = config.learning_rate
    warmup = round(config.warmup * steps)
    if config.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=0.0 if warmup else config.learning_rate,
            decay_steps=max(1, steps - warmup),
            warmup_target=config.learning_rate if warmup else None,
            warmup_steps=warmup,
        )
    elif warmup:
        rate = keras.optimizers.schedules.PolynomialDecay(0.0, warmup, config.learning_rate)
    return keras.optimizers.Adam(rate, global_clipnorm=config.clip_norm or None)


def take_weights(model: keras.Model, path: Path) -> None:
    """Copies the weights of a ``.keras`` file.

    Raises:
        UserError: it cannot be read, or is of another architecture or number of classes.
    """
    try:
        weights = keras.saving.load_model(path, compile=False, safe_mode=True).get_weights()
    except Exception as error:
        # Keras raises many types on files that are none of its own.
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model file {str(path)!r} cannot be loaded: {reason}") from error
    expected = [tuple(one.shape) for one in model.weights]
    found = [one.shape for one in weights]
    if expected != found:
        first = next(
            (pair for pair in zip(expected, found, strict=False) if pair[0] != pair[1]),
            (f"{len(expected)} weights", f"{len(found)} weights"),
        )
        raise UserError(
            f"start_from {str(path)!r} is another network or has other classes: expected "
            f"{first[0]}, found {first[1]}; give the --architecture, --filters, --normalisation "
            "and --target it was trained with"
        )
    model.set_weights(weights)


def _run_epochs(
    model: keras.Model,
    source: Input,
    progress: Progress,
    checkpoint: Checkpoint,
    log: Callable[[list[dict[str, float]]], None],
    say: Say,
) -> None:
    config = source.config
    steps = source.steps("train")
    done = len(progress.epochs)
    model.fit(
        source.training(done),
        steps_per_epoch=steps,
        initial_epoch=done,
        epochs=config.epochs,
        validation_data=source.validation(),
        shuffle=False,
        verbose=0,
        callbacks=[
            StopOnBadLoss(),
            ShowProgress(config, steps, say),
            KeepState(config, progress, checkpoint, log),
        ],
    )


def _explain(error: BadLossError, plan: Plan, progress: Progress, checkpoint: Checkpoint) -> str:
    """What happened, and where the last good weights are."""
    kept = "no epoch was finished"
    if progress.epochs:
        network = build(plan.config, len(plan.taxonomy))
        checkpoint.restore_best(network)
        path = checkpoint.folder / "last-good.keras"
        network.save(path)
        kept = f"the weights of epoch {progress.best_epoch} are kept in {path}"
    return (
        f"the loss was not finite at step {error.step} of epoch {error.epoch}; {kept}; "
        f"lower --learning_rate (it is {plan.config.learning_rate}) or --clip_norm"
    )
