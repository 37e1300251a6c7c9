"""Evaluates a network on splits: confusion matrices, metrics, examples, a profile for drift."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from images.panels import PanelRow, error_map, panel
from images.resize import resize_image, resize_nearest
from model.backend import is_jax
from model.dataset import DatasetInput
from model.frames import FramesMissingError, frames
from runtime.command_line import Log
from runtime.errors import UnavailableError
from schemas.challenge import challenge_score, has_challenge_classes, without_hood
from schemas.classes import VOID, Taxonomy, UInt8Array
from schemas.drift import Profile
from schemas.stats import ConfusionMatrix, Int64Array

_EXAMPLES_PER_KIND = 2


@dataclass(frozen=True)
class Evaluation:
    """The results of a network on one split, or several.

    Attributes:
        counts: confusion matrix of each image, int64 (images, classes, classes).
        challenge_matrix: confusion matrix for the challenge's score, without vehicles on the hood.
        cross_entropy: mean over all pixels that are not void.
        frames: confusion matrix over all images at their own size, with predictions scaled up as
            ``beam.infer`` does; None if it is not known.
    """

    taxonomy: Taxonomy
    counts: Int64Array
    challenge_matrix: ConfusionMatrix
    cross_entropy: float
    frames: ConfusionMatrix | None = None

    @property
    def matrix(self) -> ConfusionMatrix:
        """The confusion matrix over all images."""
        return ConfusionMatrix(self.counts.sum(axis=0))

    def metrics(self, prefix: str = "test_") -> dict[str, float]:
        """The metrics logged to MLflow; with the challenge's if the taxonomy has its classes."""
        figures = {"loss": self.cross_entropy, **_summary(self.matrix)}
        if has_challenge_classes(self.taxonomy):
            figures |= challenge_score(self.challenge_matrix, self.taxonomy)
        if self.frames:
            at_frame_size = _summary(self.frames)
            figures |= {f"frame_{name}": value for name, value in at_frame_size.items()}
        return {f"{prefix}{name}": value for name, value in figures.items()}


def _summary(matrix: ConfusionMatrix) -> dict[str, float]:
    return {
        "pixel_accuracy": matrix.pixel_accuracy(),
        "mean_iou": matrix.mean_iou(),
        "frequency_weighted_iou": matrix.frequency_weighted_iou(),
    }


def evaluate(model: Any, source: DatasetInput, taxonomy: Taxonomy, *splits: str) -> Evaluation:
    """Predicts every image of the splits once and compares it with its mask.

    Images of another size than the network was trained at are resized, as by ``beam.infer``.
    """
    import keras

    classes = len(taxonomy)
    scored = has_challenge_classes(taxonomy)
    loss_of = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=VOID, reduction="sum"
    )
    counts = []
    challenge_matrix = ConfusionMatrix.zero(classes)
    loss = 0.0
    for logits, truths in chain.from_iterable(_outputs(model, source, one) for one in splits):
        loss += float(loss_of(truths, logits))
        predictions = np.argmax(logits, axis=-1).astype(np.uint8)
        for truth, predicted in zip(truths[..., 0], predictions, strict=True):
            counts.append(ConfusionMatrix.of(truth, predicted, classes).counts)
            if scored:
                scored_truth = without_hood(truth, taxonomy)
                challenge_matrix += ConfusionMatrix.of(scored_truth, predicted, classes)
    stacked = np.stack(counts)
    return Evaluation(taxonomy, stacked, challenge_matrix, loss / max(1, int(stacked.sum())))


def _outputs(model: Any, source: DatasetInput, split: str) -> Iterator[tuple[Any, Any]]:
    """Yields logits (batch, height, width, classes) and masks, at the size of the dataset."""
    size = (source.height, source.width)
    if size == (source.trained_at["height"], source.trained_at["width"]):
        for images, masks in source.evaluation(split):
            # Without the padding.
            logits = _logits(model, images)[:, : source.height, : source.width]
            yield logits, masks[:, : source.height, : source.width]
        return
    for image, mask in source.pairs(split):
        yield (
            resize_nearest(_resized_logits(model, source, image), *size)[None],
            mask[None, ..., None],
        )


def prediction_profile(model: Any, source: DatasetInput, taxonomy: Taxonomy, split: str) -> Profile:
    """The network's predictions on a split, with which later ones are compared for drift."""
    pixels = np.zeros(len(taxonomy), np.int64)
    confidence, count = 0.0, 0
    for batch, _ in _outputs(model, source, split):
        logits = np.asarray(batch, np.float32)
        pixels += np.bincount(np.argmax(logits, axis=-1).ravel(), minlength=len(taxonomy))
        # The probability of the likeliest class, whose own exponential is 1.
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        confidence += float((1 / exponentials.sum(axis=-1)).sum(dtype=np.float64))
        count += len(logits)
    return Profile(
        images=count,
        class_pixels=dict(zip(taxonomy.names, pixels.tolist(), strict=True)),
        mean_confidence=confidence / max(1, int(pixels.sum())),
    )


def with_frame_metrics(
    evaluation: Evaluation, model: Any, source: DatasetInput, log: Log, *splits: str
) -> Evaluation:
    """Adds the results at the images' own size, or logs why the source files cannot be read."""
    classes = len(evaluation.taxonomy)
    matrix = ConfusionMatrix.zero(classes)
    try:
        for frame in chain.from_iterable(
            frames(source.folder, source.manifest, split) for split in splits
        ):
            predicted = predict(model, source, frame.image)
            matrix += ConfusionMatrix.of(source.class_table[frame.truth], predicted, classes)
    except (FramesMissingError, UnavailableError) as error:
        log(f"no figures at the frames' own size: {error}")
        return evaluation
    return replace(evaluation, frames=matrix)


def draw_examples(model: Any, source: DatasetInput, evaluation: Evaluation, *splits: str) -> Any:
    """A sheet of the best, median and worst images: input, truth, prediction, errors."""
    scores = np.array([ConfusionMatrix(counts).mean_iou() for counts in evaluation.counts])
    order = np.argsort(-scores, kind="stable")
    # The last ones are those whose truth is all void, which says nothing of a prediction.
    order = order[: np.isfinite(scores).sum() or None]
    kinds = {
        "best": order[:_EXAMPLES_PER_KIND],
        "median": order[len(order) // 2 :][:_EXAMPLES_PER_KIND],
        "worst": order[-_EXAMPLES_PER_KIND:],
    }
    kind_of = {int(index): kind for kind, indices in kinds.items() for index in indices}
    pairs = enumerate(chain.from_iterable(map(source.pairs, splits)))
    examples = {index: pair for index, pair in pairs if index in kind_of}
    rows = []
    for index, kind in kind_of.items():
        image, truth = examples[index]
        predicted = predict(model, source, image)
        caption = f"{kind}   mean IoU {scores[index]:.3f}"
        rows.append(
            PanelRow(caption, image, [truth, predicted, error_map(truth, predicted, image)])
        )
    return panel(rows, ("input", "truth", "prediction", "errors"), evaluation.taxonomy, width=240)


def predict(model: Any, source: DatasetInput, image: UInt8Array) -> UInt8Array:
    """Predicted class ids (height, width) of one image (height, width, 3) of any size.

    As by ``beam.infer``: the image is resized to the size of the training, the prediction back.
    """
    logits = _resized_logits(model, source, image)
    return resize_nearest(np.argmax(logits, axis=-1).astype(np.uint8), *image.shape[:2])


def _resized_logits(model: Any, source: DatasetInput, image: UInt8Array) -> Any:
    """Logits (height, width, classes) of an image, at the size that the network was trained at."""
    height, width, resize = (source.trained_at[name] for name in ("height", "width", "resize"))
    resized = resize_image(image, height, width, resize)
    rows, columns = source.geometry.mirror(height), source.geometry.mirror(width)
    return np.asarray(_logits(model, resized[rows][:, columns][None]))[0, :height, :width]


def _logits(model: Any, images: UInt8Array) -> Any:
    """Logits (batch, height, width, classes), two for a binary network."""
    from model.losses import class_logits

    if not is_jax():
        # On a GPU, XLA would compile the network anew for each size of a batch.
        model.jit_compile = False
    # Compiled: called, the network would run each operation by itself.
    return class_logits(model.predict_on_batch(images))


def class_rows(matrix: ConfusionMatrix, taxonomy: Taxonomy) -> Iterator[dict[str, Any]]:
    """Yields true pixels, IoU, precision and recall of each class; NaN if undefined."""
    figures = (matrix.true_pixels, matrix.iou(), matrix.precision(), matrix.recall())
    for label, pixels, iou, precision, recall in zip(taxonomy.classes, *figures, strict=True):
        yield {
            "class_id": label.id,
            "class_name": label.name,
            "true_pixels": int(pixels),
            "iou": float(iou),
            "precision": float(precision),
            "recall": float(recall),
        }
