"""The state of a training on disk, so that a killed one goes on where it was."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import UserError

Array = npt.NDArray[Any]

_STATE, _BEST, _RUN = "state.npz", "best.npz", "run.json"


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        epochs: one mapping of metrics for each finished epoch.
        best_epoch: number, from 1, of the epoch whose weights are kept; 0 before the first.
        best_score: what it was chosen by; higher is better.
    """

    epochs: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float = float("-inf")


class Checkpoint:
    """Files of one training below a folder; written whole or not at all.

    Holds every variable of model and optimizer, random states included, at the end of the last
    epoch, and the weights of the best one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, model: Any, progress: Progress) -> None:
        """Writes the state; the best weights too where the last epoch is the best."""
        if progress.best_epoch == len(progress.epochs):
            _write(self.folder / _BEST, [np.asarray(one) for one in model.weights], {})
        arrays = [np.asarray(variable) for variable in _variables(model)]
        _write(self.folder / _STATE, arrays, vars(progress))

    def restore(self, model: Any) -> Progress:
        """Brings a freshly built model to the state; an empty Progress where there is none."""
        if not (self.folder / _STATE).is_file():
            return Progress()
        arrays, facts = _read(self.folder / _STATE)
        for variable, value in zip(_variables(model), arrays, strict=True):
            variable.assign(value)
        return Progress(**facts)

    def restore_best(self, model: Any) -> None:
        """Gives the model the weights of the best epoch."""
        arrays, _ = _read(self.folder / _BEST)
        for variable, value in zip(model.weights, arrays, strict=True):
            variable.assign(value)

    @property
    def run_id(self) -> str | None:
        """The MLflow run that this training writes to, once it is known."""
        path = self.folder / _RUN
        return str(json.loads(path.read_text())["run_id"]) if path.is_file() else None

    @run_id.setter
    def run_id(self, run_id: str) -> None:
        temporary = self.folder / f"{_RUN}.tmp"
        temporary.write_text(json.dumps({"run_id": run_id}))
        temporary.replace(self.folder / _RUN)

    def remove(self) -> None:
        """Deletes the files: the model is registered."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def checkpoint(state: str, key: str) -> Iterator[Checkpoint]:
    """The checkpoint of one training, for this process alone.

    Raises:
        UserError: the folder cannot be written, or another process trains the same now.
    """
    import fcntl

    folder = Path(state, key[:16]).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise UserError(f"state folder {state!r} cannot be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another process trains on this dataset with this configuration; wait for it, or "
                f"stop it (its state is in {folder})"
            ) from error
        yield Checkpoint(folder)
    finally:
        os.close(lock)


def _variables(model: Any) -> list[Any]:
    return [*model.variables, *model.optimizer.variables]


def _write(path: Path, arrays: list[Array], facts: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        np.savez(
            file,
            allow_pickle=False,
            facts=np.array(json.dumps(facts)),
            **{f"{index:05d}": array for index, array in enumerate(arrays)},
        )
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _read(path: Path) -> tuple[list[Array], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as archive:
        facts = json.loads(str(archive["facts"]))
        return [archive[name] for name in sorted(archive.files) if name != "facts"], facts
