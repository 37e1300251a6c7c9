"""The training loss: cross-entropy, plus Dice, Tversky or focal loss if configured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from schemas.classes import VOID

Extra = Literal["none", "dice", "tversky", "focal"]

_SMOOTH = 1.0
_TVERSKY_FALSE_POSITIVES, _TVERSKY_FALSE_NEGATIVES = 0.3, 0.7
_FOCAL_GAMMA = 2.0


def class_logits(logits: Any) -> Any:
    """Logits with a channel for each class: a single channel becomes (0, logit).

    The softmax of (0, z) is (1 - sigmoid(z), sigmoid(z)), so a binary network needs no loss or
    metric of its own.
    """
    if logits.shape[-1] != 1:
        return logits
    return ops.concatenate([ops.zeros_like(logits), logits], axis=-1)


def log_weights(class_weights: Sequence[float]) -> npt.NDArray[np.float32]:
    """Logarithms of class weights, float32 (classes,); 0 for a class without training pixels.

    Such a class weighs nothing, and is in no truth.
    """
    return np.log([weight or 1.0 for weight in class_weights]).astype(np.float32)


class SegmentationLoss(keras.losses.Loss):
    """Sparse cross-entropy over the pixels that are not void, plus an extra loss.

    Truth is (batch, height, width, 1) of class ids, 255 for void; prediction is logits (batch,
    height, width, classes) or, for two classes, (batch, height, width, 1).

    Sources: Milletari et al., "V-Net", 2016 (Dice); Salehi et al., "Tversky loss function for
    image segmentation", 2017; Lin et al., "Focal loss for dense object detection", 2017; Menon et
    al., "Long-tail learning via logit adjustment", 2021.

    Args:
        class_weights: weight of each class's pixels in the cross-entropy; the sum is divided by
            the weights' sum, so that the scale of the loss does not change.
        adjustment: share of the class weights that the network's own logits are without. Trained
            with weights w, a network learns probabilities in proportion to w p, so that it finds
            more of the rare classes, and sees them where they are not. The loss adds
            ``adjustment * log(w)`` to the logits, so theirs are in proportion to
            ``p * w ** (1 - adjustment)``.
        extra: the extra loss. ``dice`` and ``tversky`` are computed over the batch and averaged
            over the classes in its truth; ``focal`` is cross-entropy weighted by (1 - p)**2.
        extra_weight: factor of the extra loss.
    """

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        adjustment: float = 0.0,
        extra: Extra = "none",
        extra_weight: float = 1.0,
        name: str = "segmentation_loss",
    ) -> None:
        super().__init__(name=name)
        self.class_weights = class_weights
        self.adjustment = adjustment
        self.extra = extra
        self.extra_weight = extra_weight

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss of each image, float32 (batch,)."""
        logits = class_logits(ops.cast(y_pred, "float32"))
        if self.class_weights is not None:
            logits += self.adjustment * log_weights(self.class_weights)
        classes = logits.shape[-1]
        pixels = (ops.shape(logits)[0], -1)
        truth = ops.reshape(ops.cast(y_true, "int32"), pixels)
        logits = ops.reshape(logits, (*pixels, classes))
        known = ops.cast(truth != VOID, "float32")
        truth = ops.where(truth == VOID, 0, truth)

        log_p = ops.log_softmax(logits, axis=-1)
        log_p_truth = ops.take_along_axis(log_p, ops.expand_dims(truth, -1), axis=-1)[..., 0]
        weights = known
        if self.class_weights is not None:
            weights *= ops.take(ops.convert_to_tensor(self.class_weights, "float32"), truth)
        # Normalised over the batch: a mostly void image counts by its few remaining pixels.
        total = ops.maximum(ops.mean(ops.sum(weights, axis=-1)), 1e-6)
        loss = -ops.sum(weights * log_p_truth, axis=-1) / total
        if self.extra == "focal":
            focus = (1 - ops.exp(log_p_truth)) ** _FOCAL_GAMMA
            loss -= self.extra_weight * ops.sum(weights * focus * log_p_truth, axis=-1) / total
        elif self.extra != "none":
            loss += self.extra_weight * self._overlap_loss(ops.exp(log_p), truth, known)
        return loss

    def _overlap_loss(self, probability: Any, truth: Any, known: Any) -> Any:
        """1 - mean Tversky index over the classes in the batch's truth; Dice weighs 0.5 and 0.5."""
        on_false_positives, on_false_negatives = (
            (0.5, 0.5)
            if self.extra == "dice"
            else (_TVERSKY_FALSE_POSITIVES, _TVERSKY_FALSE_NEGATIVES)
        )
        known = ops.expand_dims(known, -1)
        target = ops.one_hot(truth, probability.shape[-1]) * known
        hits = ops.sum(probability * target, axis=(0, 1))
        predicted = ops.sum(probability * known, axis=(0, 1))
        true = ops.sum(target, axis=(0, 1))
        index = (hits + _SMOOTH) / (
            hits
            + on_false_positives * (predicted - hits)
            + on_false_negatives * (true - hits)
            + _SMOOTH
        )
        present = ops.cast(true > 0, "float32")
        return 1 - ops.sum(index * present) / ops.maximum(ops.sum(present), 1.0)
