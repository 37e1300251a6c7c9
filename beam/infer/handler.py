"""Beam's model handler for an engine; a bad image does not lose the other images of its batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from apache_beam.ml.inference.base import ModelHandler

from beam.infer import sliding_windows
from beam.infer.engines.base import Engine, Predicted, Runtime, is_out_of_memory
from beam.infer.engines.choice import load_engine
from beam.infer.model_uri import ResolvedModel, local_model
from beam.infer.pictures import Picture, Prediction, Unpredicted
from runtime.errors import first_line


class UNetHandler(ModelHandler[Picture, Prediction | Unpredicted, Engine]):
    """Runs the model in batches; returns pictures that cannot be predicted with the reason."""

    def __init__(self, model: ResolvedModel, runtime: Runtime) -> None:
        super().__init__()
        self._model = model
        self._runtime = runtime

    def load_model(self) -> Engine:
        """Loads the engine, once for each process, or once for all if the runtime shares it."""
        with local_model(self._model) as model:
            return load_engine(model, self._runtime)

    def run_inference(
        self,
        batch: Sequence[Picture],
        model: Engine,
        inference_args: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> Iterable[Prediction | Unpredicted]:
        """One result for each picture."""
        # A model that serves all processes is a proxy, which has methods alone.
        return predict(batch, model, (self._model.height, self._model.width))

    def batch_elements_kwargs(self) -> dict[str, int]:
        """Full batches, except for the last batch of a bundle."""
        size = self._runtime.batch_size
        return {"min_batch_size": size, "max_batch_size": size}

    def get_num_bytes(self, batch: Sequence[Picture]) -> int:
        """Bytes of the pixels, for Beam's metrics; by default, Beam pickles each batch to know."""
        return sum(picture.pixels.nbytes for picture in batch)

    def share_model_across_processes(self) -> bool:
        """True if one model serves the whole machine."""
        return self._runtime.shared


def predict(
    pictures: Sequence[Picture], engine: Engine, size: tuple[int, int]
) -> Iterator[Prediction | Unpredicted]:
    """Predicts pictures; if a batch fails, only the pictures that fail on their own are lost.

    If memory runs out, the engine's batch size is halved for this call and all later ones. After
    any other failure, the batch is split in halves until the picture at fault is alone.

    Args:
        size: height and width of the images that the engine takes.
    """
    waiting = [list(pictures)]
    while waiting:
        some = waiting.pop()
        try:
            found = _predict(some, engine, size)
        except Exception as error:  # noqa: BLE001 - engines raise many types
            if is_out_of_memory(error) and engine.halve_batch():
                waiting.append(some)
            elif len(some) > 1:
                middle = len(some) // 2
                waiting += [some[middle:], some[:middle]]
            else:
                code = "out_of_memory" if is_out_of_memory(error) else "failed"
                yield Unpredicted(
                    some[0], code, f"{type(error).__name__}: {first_line(error, 2000)}"
                )
            continue
        for picture, (class_id, confidence) in zip(some, found, strict=True):
            if np.isfinite(confidence).all():
                yield Prediction(picture, class_id, confidence)
            else:
                message = "expected finite confidences, found NaN or infinity"
                yield Unpredicted(picture, "not_finite", message)


def _predict(pictures: Sequence[Picture], engine: Engine, size: tuple[int, int]) -> list[Predicted]:
    """Class ids and confidences of each picture, from as many windows as it takes."""
    cut = [sliding_windows.cut(picture.pixels, *size) for picture in pictures]
    ends = np.cumsum([len(some) for some in cut])
    ids, confidence = (np.split(found, ends[:-1]) for found in engine.predict(np.concatenate(cut)))
    join = sliding_windows.join
    return [
        (join(some, picture.pixels.shape), join(their, picture.pixels.shape))
        for picture, some, their in zip(pictures, ids, confidence, strict=True)
    ]
