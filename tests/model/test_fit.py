"""Epochs of a training: the first logits, the learning rate, early stopping."""

from pathlib import Path

import numpy as np
import pytest

from model.checkpoint import Checkpoint, Progress
from model.plan import plan
from schemas.config import TrainConfig


def test_the_learning_rate_warms_up_and_falls(dataset: Path) -> None:
    from model.fit import optimizer

    def rates(**changes) -> list[float]:
        config = TrainConfig(learning_rate=0.1, warmup=0.1, clip_norm=0.5, **changes)
        made = optimizer(plan(str(dataset), config), steps=100)
        assert made.global_clipnorm == 0.5
        return [float(made._learning_rate(step)) for step in (0, 5, 10, 55, 100)]

    assert rates() == pytest.approx([0, 0.05, 0.1, 0.05, 0], abs=1e-6)
    assert rates(schedule="constant") == pytest.approx([0, 0.05, 0.1, 0.1, 0.1])
    plain = TrainConfig(schedule="constant", warmup=0, learning_rate=1e-3)
    made = optimizer(plan(str(dataset), plain), steps=100)
    assert float(made.learning_rate) == pytest.approx(1e-3)
    assert made.global_clipnorm is None


@pytest.mark.parametrize("target", ["", "Vehicles"])
def test_a_training_begins_as_without_logit_adjustment(dataset: Path, target: str) -> None:
    import keras

    from model.fit import adjust_biases, compile_network
    from model.unet import build

    images = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3)).astype(np.float32)
    truth = np.random.default_rng(1).integers(0, 2, (2, 32, 48, 1)).astype(np.uint8)
    losses, logits = [], []
    for share in (0.0, 0.5):
        config = TrainConfig(
            architecture="unet", filters=2, target=target, logit_adjustment=share, dropout=0
        )
        chosen = plan(str(dataset), config)
        keras.utils.set_random_seed(0)
        model = build(config, len(chosen.taxonomy))
        adjust_biases(model, chosen)
        compile_network(model, chosen, 10)
        losses.append(model.evaluate(images, truth, verbose=0, return_dict=True)["loss"])
        logits.append(model.predict(images, verbose=0))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert np.ptp(logits[1] - logits[0], axis=(0, 1, 2)) == pytest.approx(0, abs=1e-3)
    assert not np.allclose(logits[0], logits[1], atol=0.1)


def test_training_stops_early(dataset: Path, tmp_path: Path) -> None:
    from model.fit import fit

    # At this learning rate nothing is learnt, so no epoch after the first is better.
    config = TrainConfig(
        architecture="unet", filters=1, epochs=9, patience=2, learning_rate=1e-12, batch_size=16
    )
    seen: list[int] = []
    chosen = plan(str(dataset), config)
    network, progress = fit(
        chosen,
        Checkpoint(tmp_path),
        lambda epochs: seen.append(len(epochs)),
        lambda _: None,
    )
    assert seen == list(range(1, progress.best_epoch + 3))
    assert len(progress.epochs) == progress.best_epoch + 2 < 9
    taken_back = 0.5 * np.log(chosen.class_weights())
    np.testing.assert_allclose(network.get_layer("logits").bias, -taken_back, atol=1e-4)


def test_patience_counts_epochs_without_a_better_mean_iou_if_the_last_is_kept() -> None:
    from model.callbacks import has_ended

    config = TrainConfig(epochs=9, patience=2, keep="last")
    epochs = [{"val_mean_iou": score} for score in (0.1, 0.3, 0.2, 0.3)]
    ended = [
        has_ended(Progress(epochs[:done], best_epoch=done, best_score=done - 1), config)
        for done in range(5)
    ]
    assert ended == [False, False, False, False, True]
