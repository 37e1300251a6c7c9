"""The model as MLflow serves it: RGB arrays in, class ids out. Logged as code with each model.

It stands alone in the model's folder, so it imports nothing of ours.
"""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np


class _Network:
    """Loads the Keras file once; pads images to multiples of 16 and crops the answer back."""

    def load_context(self, context: Any) -> None:
        """Reads the network in Keras's safe mode."""
        import keras

        self._model = keras.saving.load_model(
            context.artifacts["keras_file"], compile=False, safe_mode=True
        )

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, ARG002
        """Class ids, uint8 (batch, height, width), of uint8 RGB (batch, height, width, 3)."""
        image = np.asarray(
            model_input["image"] if isinstance(model_input, dict) else model_input, np.uint8
        )
        height, width = image.shape[1:3]
        padding = ((0, 0), (0, -height % 16), (0, -width % 16), (0, 0))
        logits = self._model.predict(np.pad(image, padding, mode="edge"), verbose=0)
        return np.argmax(logits, axis=-1).astype(np.uint8)[:, :height, :width]


class UNetServer(_Network, mlflow.pyfunc.PythonModel):
    """MLflow would have type hints on a predict() of this class, in place of the signature."""


mlflow.models.set_model(UNetServer())
