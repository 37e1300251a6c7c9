"""Class statistics and confusion matrices that merge: ``+`` gives the same in any grouping."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.classes import VOID, UInt8Array

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PixelStats:
    """Statistics of a set of images and masks, kept as exact integer sums.

    Attributes:
        class_pixels: pixels of each class, int64 (classes,).
        void_pixels: pixels that belong to no class.
        images: number of images with at least one pixel of each class, int64 (classes,).
        class_image_pixels: all non-void pixels of the images that contain the class (classes,).
        upper_pixels: pixels of each class in the upper half of their image (classes,).
        channel_sum: sums over R, G, B values from 0 to 255, int64 (3,).
        channel_square_sum: of their squares, Python's integers (3,): 64 bits would overflow at 295
            million white images of 800x600.
    """

    class_pixels: Int64Array
    void_pixels: int
    images: Int64Array
    class_image_pixels: Int64Array
    upper_pixels: Int64Array
    channel_sum: Int64Array
    channel_square_sum: npt.NDArray[np.object_]

    @classmethod
    def zero(cls, classes: int) -> PixelStats:
        """The statistics of zero images."""

        def zeros() -> Int64Array:
            return np.zeros(classes, np.int64)

        channels = np.zeros(3, np.int64)
        return cls(zeros(), 0, zeros(), zeros(), zeros(), channels, channels.astype(object))

    @classmethod
    def of(cls, image: UInt8Array, mask: UInt8Array, classes: int) -> PixelStats:
        """The statistics of one image (height, width, 3) and its mask (height, width)."""
        counts = np.bincount(mask.ravel(), minlength=VOID + 1)
        upper = np.bincount(mask[: len(mask) // 2].ravel(), minlength=VOID + 1)
        class_pixels = counts[:classes].astype(np.int64)
        present = class_pixels > 0
        # 32-bit planes: contiguous sums are four times as fast as sums along the channel axis.
        planes = np.ascontiguousarray(image.reshape(-1, 3).T, np.uint32)
        return cls(
            class_pixels,
            int(counts[VOID]),
            present.astype(np.int64),
            present * class_pixels.sum(),
            upper[:classes].astype(np.int64),
            planes.sum(axis=1, dtype=np.int64),
            (planes * planes).sum(axis=1, dtype=np.int64).astype(object),
        )

    def __add__(self, other: PixelStats) -> PixelStats:
        names = (field.name for field in fields(PixelStats))
        return PixelStats(*(getattr(self, name) + getattr(other, name) for name in names))

    @property
    def pixels(self) -> int:
        """All pixels, void included."""
        return int(self.class_pixels.sum()) + self.void_pixels

    def channel_mean(self) -> list[float]:
        """Mean of R, G, B on the scale 0 to 1; zeros if there are no pixels."""
        return [float(v) for v in self.channel_sum / max(self.pixels, 1) / 255]

    def channel_std(self) -> list[float]:
        """Standard deviation of R, G, B over all pixels on the scale 0 to 1."""
        total = max(self.pixels, 1)
        mean = self.channel_sum / total
        mean_square = np.array([square / total for square in self.channel_square_sum])
        variance = np.maximum(mean_square - mean * mean, 0)
        return [float(v) for v in np.sqrt(variance) / 255]

    def class_weights(self) -> list[float]:
        """Median-frequency weights by class; 0 for a class without pixels.

        The frequency of a class is its share of the pixels of the images that contain it; its
        weight is the median frequency divided by its own. Source: Eigen and Fergus, "Predicting
        Depth, Surface Normals and Semantic Labels", ICCV 2015, section 6.3.2.
        """
        present = self.class_pixels > 0
        weights = np.zeros(len(self.class_pixels))
        if present.any():
            frequency = self.class_pixels[present] / self.class_image_pixels[present]
            weights[present] = np.median(frequency) / frequency
        return [float(v) for v in weights]

    def to_json(self) -> dict[str, Any]:
        """Plain integers, for a JSON file; ``from_json`` is the inverse."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PixelStats:
        """The statistics that ``to_json`` described."""
        values: dict[str, Any] = {
            k: np.array(v, object if k == "channel_square_sum" else np.int64)
            if isinstance(v, list)
            else v
            for k, v in data.items()
        }
        return cls(**values)


@dataclass(frozen=True, eq=False)
class ConfusionMatrix:
    """Pixels by true class (rows) and predicted class (columns), int64 (classes, classes).

    Void pixels of the truth are left out. Classes that occur neither in the truth nor in the
    prediction have no IoU (NaN) and are left out of the mean.
    """

    counts: Int64Array

    @classmethod
    def zero(cls, classes: int) -> ConfusionMatrix:
        """The matrix of zero pixels."""
        return cls(np.zeros((classes, classes), np.int64))

    @classmethod
    def of(cls, truth: UInt8Array, prediction: UInt8Array, classes: int) -> ConfusionMatrix:
        """The matrix of two masks of equal shape; predictions are class ids below ``classes``."""
        known = truth != VOID
        pairs = truth[known].astype(np.int64) * classes + prediction[known]
        return cls(np.bincount(pairs, minlength=classes * classes).reshape(classes, classes))

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        return ConfusionMatrix(self.counts + other.counts)

    @property
    def true_pixels(self) -> Int64Array:
        """Pixels of each class in the truth (classes,)."""
        return np.asarray(self.counts.sum(axis=1))

    @property
    def intersection(self) -> Int64Array:
        """Correctly predicted pixels of each class (classes,)."""
        return np.diagonal(self.counts)

    @property
    def union(self) -> Int64Array:
        """Pixels of each class in the truth or the prediction (classes,), void left out."""
        return np.asarray(self.counts.sum(axis=0) + self.true_pixels - self.intersection)

    def iou(self) -> Float64Array:
        """Intersection over union of each class (classes,), NaN where the union is empty."""
        return iou_by_class(self.counts)

    def precision(self) -> Float64Array:
        """Share of each class's predictions that are correct (classes,), NaN if it has none."""
        return _ratio(self.intersection, self.counts.sum(axis=0))

    def recall(self) -> Float64Array:
        """Share of each class's true pixels that are found (classes,), NaN if it has none."""
        return _ratio(self.intersection, self.true_pixels)

    def frequency_weighted_iou(self) -> float:
        """Mean IoU weighted by the share of each class in the truth; NaN if there are no pixels."""
        true = self.true_pixels
        if not true.sum():
            return float("nan")
        present = true > 0
        return float((self.iou()[present] * true[present]).sum() / true.sum())

    def mean_iou(self) -> float:
        """Mean IoU over the classes that occur; NaN if none does."""
        iou = self.iou()
        present = ~np.isnan(iou)
        return float(iou[present].mean()) if present.any() else float("nan")

    def pixel_accuracy(self) -> float:
        """Share of correctly predicted pixels; NaN if there are no pixels."""
        total = int(self.counts.sum())
        return float(self.intersection.sum() / total) if total else float("nan")


def iou_by_class(counts: npt.NDArray[Any]) -> Float64Array:
    """IoU (…, classes) of confusion matrices (…, classes, classes), NaN where a union is empty."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    return _ratio(hits, counts.sum(axis=-1) + counts.sum(axis=-2) - hits)


def _ratio(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Float64Array:
    """The quotient, NaN where the denominator is 0."""
    with np.errstate(invalid="ignore"):
        return np.asarray(part / whole, np.float64)
