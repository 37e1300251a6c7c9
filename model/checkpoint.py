"""Checkpoints of a training on disk: a killed training resumes after its last finished epoch."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from runtime.command_line import Log
from runtime.errors import UserError, first_line
from runtime.locks import lock

Array = npt.NDArray[Any]

_STATE, _RUN = "state.npz", "run.json"


@dataclass
class Progress:
    """How far a training has got.

    Attributes:
        epochs: one mapping of metrics for each finished epoch.
        best_epoch: number, from 1, of the epoch whose weights are kept; 0 before the first.
        best_score: score by which that epoch was chosen; higher is better.
    """

    epochs: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float = float("-inf")


class Checkpoint:
    """The checkpoint files of one training, each written whole or not at all.

    They hold every variable of model and optimizer, random states included, after the last finished
    epoch, and the weights of the best epoch.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def is_new(self) -> bool:
        """Whether no epoch has been finished."""
        return not (self.folder / _STATE).is_file()

    def save(self, model: Any, progress: Progress) -> None:
        """Writes the state; if the last epoch is the best, its weights are written first.

        Best weights are stored under their epoch's number, and the previous ones are kept until
        the new state is written: whichever state a kill leaves, the weights it names exist.
        """
        best = self._best(progress)
        if progress.best_epoch == len(progress.epochs):
            _write(best, [np.asarray(weight) for weight in model.weights], {})
        arrays = [np.asarray(variable) for variable in _variables(model)]
        _write(self.folder / _STATE, arrays, vars(progress))
        for path in self.folder.glob("best-*.npz"):
            if path != best:
                path.unlink()

    def restore(self, model: Any) -> Progress:
        """Restores a freshly built model; returns an empty Progress if there is no state.

        Raises:
            UserError: the files are damaged, or of another network.
        """
        if self.is_new:
            return Progress()
        with self._intact():
            arrays, facts = _read(self.folder / _STATE)
            for variable, value in zip(_variables(model), arrays, strict=True):
                variable.assign(value)
            progress = Progress(**facts)
            # Now, not when the training has ended.
            _read(self._best(progress))
        return progress

    def restore_best(self, model: Any, progress: Progress) -> None:
        """Gives the model the weights of the best epoch.

        Raises:
            UserError: the file is damaged.
        """
        with self._intact():
            arrays, _ = _read(self._best(progress))
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

    @contextmanager
    def _intact(self) -> Iterator[None]:
        try:
            yield
        # What numpy, zipfile and Keras raise on other bytes, and on other networks.
        except (OSError, EOFError, ValueError, LookupError, TypeError, BadZipFile) as error:
            raise UserError(
                f"the training cannot go on from {self.folder}: its files are damaged, or of "
                f"another version ({first_line(error)}); remove that folder to begin anew"
            ) from error

    def _best(self, progress: Progress) -> Path:
        return self.folder / f"best-{progress.best_epoch:05d}.npz"

    def remove(self) -> None:
        """Deletes the files; called once the model is registered."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def checkpoint(state: str, key: str, log: Log | None = None) -> Iterator[Checkpoint]:
    """Yields the checkpoint of one training, locked against other processes.

    Args:
        log: if given, the call waits for a process that runs this training, and logs that it does.

    Raises:
        UserError: the folder cannot be written, or another process is running this training.
    """
    folder = _folder(state, key)
    running = "another process trains on this dataset with this configuration"
    with ExitStack() as stack:
        try:
            held = stack.enter_context(_locked(folder, wait=False))
            if not held and log:
                log(f"{running}; waiting for it (its state is in {folder})")
                held = stack.enter_context(_locked(folder, wait=True))
        except OSError as error:
            raise UserError(
                f"state folder {state!r} cannot be written: {error.strerror}"
            ) from error
        if not held:
            raise UserError(f"{running}; wait for it, or stop it (its state is in {folder})")
        yield Checkpoint(folder)


def discard(state: str, key: str) -> None:
    """Removes the checkpoint of a training, if there is one, unless another process uses it."""
    folder = _folder(state, key)
    if folder.is_dir():
        # A checkpoint that cannot be removed does no harm.
        with suppress(OSError), lock(folder / "lock", wait=False) as held:
            if held:
                Checkpoint(folder).remove()


def _folder(state: str, key: str) -> Path:
    return Path(state, key[:16]).absolute()


@contextmanager
def _locked(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Holds the lock in a folder, which is made if it is missing."""
    with ExitStack() as stack:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            # A training that ends may remove the folder at any moment.
            with suppress(FileNotFoundError):
                held = stack.enter_context(lock(folder / "lock", wait=wait))
                break
        yield held


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
    # Of a file that is no archive, numpy would leave the one that it opens itself open.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        facts = json.loads(str(archive["facts"]))
        return [archive[name] for name in sorted(archive.files) if name != "facts"], facts
