"""Evaluation: sums the images' confusion matrices to one for each split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow.compute as pc

from beam.infer.table_parts import Row
from runtime.parquet import read_table
from schemas.classes import Taxonomy
from schemas.stats import ConfusionMatrix


def matrices_by_split(table: str, place: str) -> Iterator[tuple[str, ConfusionMatrix]]:
    """Sums the matrices in a file of ``masks`` by split, which is "" outside of a dataset.

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


def sum_matrices(matrices: Iterable[ConfusionMatrix], classes: int) -> ConfusionMatrix:
    """The sum of confusion matrices (classes, classes)."""
    return sum(matrices, ConfusionMatrix.zero(classes))


def confusion_rows(
    split: str, matrix: ConfusionMatrix, taxonomy: Taxonomy, run_id: str
) -> tuple[str, list[Row]]:
    """The split and one row for each cell of its matrix, zeros included, ordered by true class."""
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
