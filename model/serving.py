"""The model as MLflow serves it: RGB arrays in, class ids out. Logged as code with each model.

It must run on its own in the model's folder, so it imports nothing from this project.
"""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np


class _Network:
    """Loads the Keras file once; pads images by mirroring to a size it takes, crops the result."""

    def load_context(self, context: Any) -> None:
        """Reads the network in Keras's safe mode."""
        import keras

        self._model = keras.saving.load_model(
            context.artifacts["keras_file"], compile=False, safe_mode=True
        )
        self._geometry = context.model_config

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, ARG002
        """Class ids, uint8 (batch, height, width), of uint8 RGB (batch, height, width, 3)."""
        image = np.asarray(
            model_input["image"] if isinstance(model_input, dict) else model_input, np.uint8
        )
        height, width = image.shape[1:3]
        fitted = image[:, self._mirror(height)][:, :, self._mirror(width)]
        logits = self._model.predict(fitted, verbose=0)[:, :height, :width]
        ids = logits[..., 0] > 0 if logits.shape[-1] == 1 else np.argmax(logits, axis=-1)
        return ids.astype(np.uint8)

    def _mirror(self, size: int) -> Any:
        """Index of the row (or column) at each position of the input; see schemas/geometry.py."""
        margin, multiple = self._geometry["margin"], self._geometry["multiple"]
        after = margin + (self._geometry["remainder"] - size - 2 * margin) % multiple
        return np.pad(np.arange(size), (margin, after), mode="symmetric")


class UNetServer(_Network, mlflow.pyfunc.PythonModel):
    """Inherits predict(): MLflow would ask for type hints on one defined in this class."""


mlflow.models.set_model(UNetServer())
