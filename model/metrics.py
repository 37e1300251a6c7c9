"""Keras metric of pixel accuracy and mean IoU, from one running confusion matrix."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from model.losses import class_logits
from schemas.classes import VOID


class SegmentationMetrics(keras.metrics.Metric):
    """Pixel accuracy and mean IoU over all pixels seen since the last reset.

    Truth is (batch, height, width, 1) of class ids, 255 for void, which is left out; prediction
    is logits (batch, height, width, classes), or one channel for two classes. Classes that occur
    in neither are left out of the mean IoU. Counts are exact up to 2**63 pixels, 2**31 on JAX.
    """

    def __init__(self, classes: int, name: str = "segmentation") -> None:
        super().__init__(name=name)
        self.classes = classes
        self.count_dtype = "int32" if keras.backend.backend() == "jax" else "int64"
        self.matrix = self.add_weight(
            shape=(classes, classes), initializer="zeros", dtype=self.count_dtype, name="matrix"
        )

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:  # noqa: ARG002
        """Adds one batch."""
        truth = ops.cast(ops.reshape(y_true, (-1,)), "int32")
        found = ops.argmax(class_logits(y_pred), axis=-1)
        predicted = ops.cast(ops.reshape(found, (-1,)), "int32")
        cells = self.classes * self.classes
        # Void pixels go to an extra last cell, which is dropped.
        pairs = ops.where(truth == VOID, cells, truth * self.classes + predicted)
        # Not bincount, whose result has no fixed shape: JAX cannot compile it.
        counts = ops.reshape(
            ops.segment_sum(ops.ones_like(pairs), pairs, cells + 1)[:cells],
            (self.classes, self.classes),
        )
        self.matrix.assign_add(ops.cast(counts, self.count_dtype))

    def result(self) -> dict[str, Any]:
        """``pixel_accuracy`` and ``mean_iou``; 0 if there are no pixels."""
        matrix = ops.cast(self.matrix, "float32")
        hits = ops.diagonal(matrix)
        union = ops.sum(matrix, axis=0) + ops.sum(matrix, axis=1) - hits
        present = ops.cast(union > 0, "float32")
        iou = hits / ops.maximum(union, 1.0)
        return {
            "pixel_accuracy": ops.sum(hits) / ops.maximum(ops.sum(matrix), 1.0),
            "mean_iou": ops.sum(iou) / ops.maximum(ops.sum(present), 1.0),
        }
