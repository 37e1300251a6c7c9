"""Trains a network: builds and compiles it, and runs all epochs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from model.backend import is_jax
from model.callbacks import (
    LogProgress,
    NonFiniteLossError,
    SaveCheckpoint,
    StopOnNonFiniteLoss,
    has_ended,
)
from model.checkpoint import Checkpoint, Progress
from model.dataset import DatasetInput
from model.export import load_network
from model.hardware import seed_everything, training_scope
from model.losses import SegmentationLoss, log_weights
from model.metrics import SegmentationMetrics
from model.plan import Plan
from model.unet import build, load_encoder_weights
from runtime.command_line import Log
from runtime.errors import UserError


def fit(
    plan: Plan,
    checkpoint: Checkpoint,
    log_epochs: Callable[[list[dict[str, float]]], None],
    log: Log,
    start: Path | None = None,
) -> tuple[keras.Model, Progress]:
    """Trains from the checkpoint, or from the beginning if there is none.

    Args:
        log_epochs: called after each epoch with the metrics of all epochs so far.
        start: ``.keras`` file with the initial weights of a new training.

    Returns:
        The network with the weights that ``config.keep`` asks for, in float32 and outside any
        distribution strategy; and the progress, with the metrics of each epoch.

    Raises:
        UserError: the loss is not finite, a shard is damaged, or the initial weights do not fit.
    """
    config = plan.config
    seed_everything(config)
    source = DatasetInput(plan)
    steps = source.steps("train")
    with training_scope(config):
        model = build(config, len(plan.taxonomy))
        if start is not None:
            copy_weights(model, start)
        elif checkpoint.is_new:
            load_encoder_weights(model, config)
            adjust_biases(model, plan)
        compile_network(model, plan, steps * config.epochs)
        progress = checkpoint.restore(model)
        if progress.epochs:
            log(f"going on after epoch {len(progress.epochs)}, from {checkpoint.folder}")
        if not has_ended(progress, config):
            done = len(progress.epochs)
            training, validation = source.training(done), source.validation()
            try:
                model.fit(
                    training.for_keras(),
                    steps_per_epoch=steps,
                    initial_epoch=done,
                    epochs=config.epochs,
                    validation_data=validation.for_keras(),
                    shuffle=False,
                    verbose=0,
                    callbacks=[
                        StopOnNonFiniteLoss(),
                        LogProgress(config, steps, log),
                        SaveCheckpoint(config, progress, checkpoint, log_epochs),
                    ],
                )
            except NonFiniteLossError as error:
                raise UserError(_explain(error, plan, progress, checkpoint)) from error
            except UserError:
                raise
            except Exception as error:
                if found := training.failure or validation.failure:
                    raise found from error
                raise

    final = build(config, len(plan.taxonomy))
    checkpoint.restore_best(final, progress)
    return final, progress


def adjust_biases(model: keras.Model, plan: Plan) -> None:
    """Lowers the logits of a new network by what the loss adds to them: ``logit_adjustment``.

    So the training begins, and goes on, as it would without the adjustment. Adam needs hundreds of
    steps to move the biases as far.
    """
    weights = plan.class_weights()
    if weights is None:
        return
    added = plan.config.logit_adjustment * log_weights(weights)
    # That of a network for grey images is within another.
    (bias,) = (one for one in model.trainable_variables if one.path.endswith("logits/bias"))
    # Of two classes, the network may have the second's logit alone; the first's is then 0.
    bias.assign(-added if len(added) == bias.shape[0] else added[:1] - added[1:])


def compile_network(model: keras.Model, plan: Plan, steps: int) -> None:
    """Gives a network the configured optimizer, for ``steps`` steps, loss and metrics."""
    config = plan.config
    model.compile(
        optimizer=optimizer(plan, steps),
        loss=SegmentationLoss(
            plan.class_weights(),
            config.logit_adjustment,
            "none" if config.loss == "cross-entropy" else config.loss,
            config.loss_weight,
        ),
        metrics=[SegmentationMetrics(len(plan.taxonomy))],
        # JAX runs each operation by itself unless it compiles.
        jit_compile=is_jax() or config.xla == "on",
    )
    model.optimizer.build(model.trainable_variables)


def optimizer(plan: Plan, steps: int) -> keras.optimizers.Optimizer:
    """Adam with the configured schedule over ``steps`` steps.

    Cosine decay to 0 without restarts, from Loshchilov and Hutter, "SGDR", 2017; the warm-up is
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


def copy_weights(model: keras.Model, path: Path) -> None:
    """Copies the weights of a ``.keras`` file.

    Raises:
        UserError: the file cannot be read, or its architecture or number of classes differs.
    """
    weights = load_network(path).get_weights()
    expected = [tuple(weight.shape) for weight in model.weights]
    found = [weight.shape for weight in weights]
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


def _explain(
    error: NonFiniteLossError, plan: Plan, progress: Progress, checkpoint: Checkpoint
) -> str:
    """Saves the best weights so far; returns a message that names their file."""
    kept = "no epoch was finished"
    if progress.epochs:
        network = build(plan.config, len(plan.taxonomy))
        checkpoint.restore_best(network, progress)
        path = checkpoint.folder / "last-good.keras"
        network.save(path)
        kept = f"the weights of epoch {progress.best_epoch} are kept in {path}"
    return (
        f"the loss was not finite at step {error.step} of epoch {error.epoch}; {kept}; "
        f"lower --learning_rate (it is {plan.config.learning_rate}), or set or lower --clip_norm "
        f"(it is {plan.config.clip_norm:g}, and 0 is none)"
    )
