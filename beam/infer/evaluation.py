"""The confusion matrix of each split, summed over images in the graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow.compute as pc

from runtime.parquet import read_table
from schemas.classes import Taxonomy
from schemas.stats import ConfusionMatrix

Row = dict[str, Any]


def matrices_by_split(table: str, place: str) -> Iterator[tuple[str, ConfusionMatrix]]:
    """Sums the matrices in a file of ``masks`` for each split (``""`` outside a dataset).

    Files of other tables yield nothing. The column ``confusion`` holds classes * classes counts,
    row by row, or null if there is no truth.
    """
    if table != "masks":
        return
    rows = read_table(place, columns=["split", "confusion"])
    rows = rows.filter(pc.is_valid(rows["confusion"]))
    if not rows.num_rows:
        return
    splits = np.array([split or "" for split in rows["split"].to_pylist()])
    flat = pc.list_flatten(rows["confusion"]).to_numpy().reshape(rows.num_rows, -1)
    classes = round(flat.shape[1] ** 0.5)
    for split in np.unique(splits):
        counts = flat[splits == split].sum(axis=0, dtype=np.int64)
        yield str(split), ConfusionMatrix(counts.reshape(classes, classes))


class SumMatrices(beam.CombineFn):
    """Sums confusion matrices by their zero and ``+``."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self._classes = classes

    def create_accumulator(self) -> ConfusionMatrix:
        """The matrix of no pixels."""
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
    """One row for each cell of a split's matrix, including zeros, ordered by true class."""
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
