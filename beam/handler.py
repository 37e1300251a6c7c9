"""Predictions of batches, none of whose images is lost: Beam's model handler over an engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from apache_beam.ml.inference.base import ModelHandler

from beam.engines import Engine, Runtime, first_line, is_out_of_memory, load_engine
from beam.model_uri import ResolvedModel
from beam.predict import Picture, Prediction, Unpredicted


class UNetHandler(ModelHandler[Picture, Prediction | Unpredicted, Engine]):
    """Runs the model in batches; pixels that cannot be predicted come back with the reason."""

    def __init__(self, model: ResolvedModel, runtime: Runtime) -> None:
        super().__init__()
        self._model = model
        self._runtime = runtime

    def load_model(self) -> Engine:
        """Once for each process, or for all of them where the runtime shares one."""
        return load_engine(self._model, self._runtime)

    def run_inference(
        self,
        batch: Sequence[Picture],
        model: Engine,
        inference_args: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> Iterable[Prediction | Unpredicted]:
        """One result for each picture."""
        return predict(batch, model)

    def batch_elements_kwargs(self) -> dict[str, int]:
        """Full batches, but for a bundle's last."""
        size = self._runtime.batch_size
        return {"min_batch_size": size, "max_batch_size": size}

    def get_num_bytes(self, batch: Sequence[Picture]) -> int:
        """Bytes of the pixels, for Beam's metrics, which would pickle each batch to know."""
        return sum(picture.pixels.nbytes for picture in batch)

    def share_model_across_processes(self) -> bool:
        """True where one model serves the whole machine."""
        return self._runtime.shared


def predict(pictures: Sequence[Picture], engine: Engine) -> Iterator[Prediction | Unpredicted]:
    """Predicts pictures; of a batch that fails, those that do not fail by themselves.

    Where memory runs out, the engine's batch is halved, for this call and all later ones. Any other
    failure halves the pictures until the one at fault stands alone.
    """
    waiting = [list(pictures)]
    while waiting:
        some = waiting.pop()
        try:
            found = engine.predict(np.stack([picture.pixels for picture in some]))
        except Exception as error:  # noqa: BLE001 - engines raise many types
            if is_out_of_memory(error) and engine.halve():
                waiting.append(some)
            elif len(some) > 1:
                middle = len(some) // 2
                waiting += [some[middle:], some[:middle]]
            else:
                code = "out_of_memory" if is_out_of_memory(error) else "failed"
                yield Unpredicted(some[0], code, f"{type(error).__name__}: {first_line(error)}")
            continue
        for picture, class_id, confidence in zip(some, *found, strict=True):
            if np.isfinite(confidence).all():
                yield Prediction(picture, class_id, confidence)
            else:
                message = "expected finite logits, found infinite ones or none at all"
                yield Unpredicted(picture, "not_finite", message)
