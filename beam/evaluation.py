"""The confusion matrix of each split, summed over images in the graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np

from schemas.classes import Taxonomy
from schemas.stats import ConfusionMatrix

Row = dict[str, Any]


def matrices(mask_row: Row) -> Iterator[tuple[str, ConfusionMatrix]]:
    """The matrix of one row of ``masks`` under its split (``""`` outside a dataset), if it has one.

    ``confusion`` holds classes * classes counts, row after row.
    """
    flat = mask_row["confusion"]
    if flat is not None:
        counts = np.array(flat, np.int64)
        yield (
            mask_row["split"] or "",
            ConfusionMatrix(counts.reshape(2 * [round(len(flat) ** 0.5)])),
        )


class SumMatrices(beam.CombineFn):
    """Wraps the monoid: its zero and its ``+``."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self._classes = classes

    def create_accumulator(self) -> ConfusionMatrix:
        """The matrix of no pixel."""
        return ConfusionMatrix.zero(self._classes)

    def add_input(self, accumulator: ConfusionMatrix, matrix: ConfusionMatrix) -> ConfusionMatrix:
        """The sum of two."""
        return accumulator + matrix

    def merge_accumulators(self, accumulators: Iterable[ConfusionMatrix]) -> ConfusionMatrix:
        """The sum of any number."""
        return sum(accumulators, self.create_accumulator())

    def extract_output(self, accumulator: ConfusionMatrix) -> ConfusionMatrix:
        """The matrix itself."""
        return accumulator


def confusion_rows(
    split: str, matrix: ConfusionMatrix, taxonomy: Taxonomy, run_id: str
) -> tuple[str, list[Row]]:
    """One row for each cell of a split's matrix, zeros included, true class by true class."""
    names = taxonomy.names
    rows = [
        {
            "split": split or None,
            "true_class_id": true,
            "true_class_name": names[true],
            "predicted_class_id": predicted,
            "predicted_class_name": names[predicted],
            "pixel_count": int(matrix.counts[true, predicted]),
            "run_id": run_id,
        }
        for true, predicted in np.ndindex(matrix.counts.shape)
    ]
    return split, rows
