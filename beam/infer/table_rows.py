"""Computes the rows of ``masks`` and ``class_stats`` from a prediction."""

from __future__ import annotations

import numpy as np

from beam.infer.model_uri import ResolvedModel
from beam.infer.pictures import Prediction
from beam.infer.table_parts import Columns, Row
from images import png
from images.resize import nearest_counts, resize_nearest
from schemas.stats import ConfusionMatrix


def rows_of(prediction: Prediction, model: ResolvedModel, run_id: str) -> tuple[Row, Columns]:
    """The row of ``masks`` and, as columns, the rows of ``class_stats`` of one image.

    The mask has the size of the image that was read; its pixels take class and confidence of the
    nearest predicted pixel. Instead of resizing the confidences, each predicted pixel is weighted
    by how often it is the nearest.
    """
    picture, classes = prediction.picture, len(model.taxonomy)
    size = (picture.height, picture.width)
    ids = prediction.class_id.ravel()
    weights = nearest_counts(prediction.class_id.shape, size).ravel()
    counts = np.bincount(ids, weights, minlength=classes).astype(np.int64)
    sums = np.bincount(ids, prediction.confidence.ravel() * weights, minlength=classes)
    mask = resize_nearest(prediction.class_id, *size)
    mask_png = png.encode_palette(mask, model.taxonomy.palette)
    matrix = None
    if picture.truth is not None:
        matrix = ConfusionMatrix.of(picture.truth, mask, classes)
    mask_row = {
        "image_id": picture.image_id,
        "source_uri": picture.source_uri,
        "split": picture.split,
        "width": picture.width,
        "height": picture.height,
        "mask": {"bytes": mask_png, "path": f"{picture.image_id}.png"},
        "mask_size": len(mask_png),
        "mean_confidence": float(sums.sum() / mask.size),
        "pixel_accuracy": _nan_to_none(matrix.pixel_accuracy()) if matrix else None,
        "confusion": matrix.counts.ravel().tolist() if matrix else None,
        "image_sha256": picture.image_sha256,
        "truth_sha256": picture.truth_sha256,
        "run_id": run_id,
    }
    unknown = [None] * classes
    class_columns = {
        "image_id": [picture.image_id] * classes,
        "split": [picture.split] * classes,
        "class_id": list(range(classes)),
        "class_name": list(model.taxonomy.names),
        "pixel_count": counts.tolist(),
        "pixel_fraction": (counts / mask.size).tolist(),
        "mean_confidence": [
            total / count if count else None
            for total, count in zip(sums.tolist(), counts.tolist(), strict=True)
        ],
        "true_pixel_count": matrix.true_pixels.tolist() if matrix else unknown,
        "intersection": matrix.intersection.tolist() if matrix else unknown,
        "union": matrix.union.tolist() if matrix else unknown,
        "iou": [_nan_to_none(iou) for iou in matrix.iou().tolist()] if matrix else unknown,
        "run_id": [run_id] * classes,
    }
    return mask_row, class_columns


def _nan_to_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
