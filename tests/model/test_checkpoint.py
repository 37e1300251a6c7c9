"""Checkpoints that cannot be read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.checkpoint import Checkpoint, Progress
from runtime.errors import UserError


def _network(units: int = 1) -> Any:
    import keras

    made = keras.Sequential([keras.Input((1,)), keras.layers.Dense(units)])
    made.compile("sgd")
    made.optimizer.build(made.trainable_variables)
    return made


@pytest.mark.parametrize("name", ["state.npz", "best-00001.npz"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"NUMPY", b"NUMPX")),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("nothing"),
        lambda path: np.savez(path, other=np.zeros(1)),
    ],
    ids=["cut", "bytes", "empty", "text", "other"],
)
def test_a_damaged_checkpoint_is_an_error(
    name: str, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    kept = Checkpoint(tmp_path)
    kept.save(_network(), Progress([{"loss": 3.0}], best_epoch=1, best_score=-3.0))
    assert kept.restore(_network()).best_epoch == 1
    damage(tmp_path / name)
    with pytest.raises(UserError, match=f"cannot go on from {tmp_path}: .*; remove that folder to"):
        kept.restore(_network())


def test_a_checkpoint_of_another_network_or_without_its_best_weights_is_an_error(
    tmp_path: Path,
) -> None:
    kept, progress = Checkpoint(tmp_path), Progress([{"loss": 3.0}], best_epoch=1, best_score=-3.0)
    kept.save(_network(), progress)
    with pytest.raises(UserError, match="damaged, or of another version"):
        kept.restore(_network(2))
    (tmp_path / "best-00001.npz").unlink()
    for restored in (kept.restore, lambda made: kept.restore_best(made, progress)):
        with pytest.raises(UserError, match="remove that folder to begin anew"):
            restored(_network())
