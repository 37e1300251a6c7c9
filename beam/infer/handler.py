"""Model handler for Beam's RunInference; an image that fails does not fail its whole batch."""

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
    """Runs the model in batches; a picture that cannot be predicted yields the reason."""

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
        # A shared engine is a proxy without attributes, so the size is not read from it.
        return predict(batch, model, (self._model.height, self._model.width))

    def batch_elements_kwargs(self) -> dict[str, int]:
        """Full batches, except for the last batch of a bundle."""
        size = self._runtime.batch_size
        return {"min_batch_size": size, "max_batch_size": size}

    def get_num_bytes(self, batch: Sequence[Picture]) -> int:
        """Bytes of the pixels, for Beam's metrics; by default, Beam pickles each batch to count."""
        return sum(picture.pixels.nbytes for picture in batch)

    def share_model_across_processes(self) -> bool:
        """True if one model serves the whole machine."""
        return self._runtime.shared


def predict(
    pictures: Sequence[Picture], engine: Engine, size: tuple[int, int]
) -> Iterator[Prediction | Unpredicted]:
    """Predicts pictures; if a batch fails, only the pictures that fail by themselves are lost.

    If memory runs out, the engine's batch size is halved for this call and all later ones. After
    any other failure, the batch is split in halves until the failing picture is alone.

    Args:
        size: height and width of the images that the engine takes.
    """
    batches = [list(pictures)]
    while batches:
        batch = batches.pop()
        try:
            predicted = predict_windows(batch, engine, size)
        except Exception as error:  # noqa: BLE001 - engines raise many types
            if is_out_of_memory(error) and engine.halve_batch():
                batches.append(batch)
            elif len(batch) > 1:
                middle = len(batch) // 2
                batches += [batch[middle:], batch[:middle]]
            else:
                code = "out_of_memory" if is_out_of_memory(error) else "failed"
                message = f"{type(error).__name__}: {first_line(error, 2000)}"
                yield Unpredicted(batch[0], code, message)
            continue
        for picture, (class_id, confidence) in zip(batch, predicted, strict=True):
            if np.isfinite(confidence).all():
                yield Prediction(picture, class_id, confidence)
            else:
                message = "expected finite confidences, found NaN or infinity"
                yield Unpredicted(picture, "not_finite", message)


def predict_windows(
    pictures: Sequence[Picture], engine: Engine, size: tuple[int, int]
) -> list[Predicted]:
    """Class ids and confidences of each picture, joined from its windows; see ``predict``."""
    windows = [sliding_windows.cut(picture.pixels, *size) for picture in pictures]
    ends = np.cumsum([len(of_picture) for of_picture in windows])
    ids, confidences = (
        np.split(output, ends[:-1]) for output in engine.predict(np.concatenate(windows))
    )
    upscale = ids[0].shape[1] // size[0]
    shapes = [[side * upscale for side in picture.pixels.shape[:2]] for picture in pictures]
    join = sliding_windows.join
    return [
        (join(class_id, shape), join(confidence, shape))
        for shape, class_id, confidence in zip(shapes, ids, confidences, strict=True)
    ]
