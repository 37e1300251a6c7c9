"""Drift: the profile of published predictions beside that of the model's validation split."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from beam.infer.plan import Job
from beam.infer.runs import partition_of
from runtime.parquet import read_footer, read_table
from schemas.drift import Drift, Profile
from schemas.published import files_of


def write_drift(job: Job, root: str, path: Path) -> None:
    """Writes how the published tables of a job compare with its model's validation, as JSON."""
    partition = partition_of(job.model, job.source_name)
    drift = Drift(
        model=job.model.uri,
        partition=partition,
        now=profile_of(root, partition),
        validation=job.model.validation,
    )
    path.write_text(drift.model_dump_json(indent=2), encoding="utf-8")


def profile_of(root: str, partition: str) -> Profile:
    """What a published partition holds, read one file at a time.

    Raises:
        OSError, ValueError: there are no such tables.
    """
    pixels: dict[int, int] = {}
    names: dict[int, str] = {}
    confidence = 0.0
    for file in files_of(root, "class_stats", partition):
        table = read_table(file, ["class_id", "class_name", "pixel_count", "mean_confidence"])
        ids = table["class_id"].to_numpy()
        counts = table["pixel_count"].to_numpy()
        # The mean of a class without pixels is null, and NaN in numpy.
        means = np.nan_to_num(table["mean_confidence"].to_numpy().astype(np.float64))
        confidence += float(counts @ means)
        present, first_rows = np.unique(ids, return_index=True)
        for class_id, row in zip(present.tolist(), first_rows.tolist(), strict=True):
            names[class_id] = table["class_name"][row].as_py()
            pixels[class_id] = pixels.get(class_id, 0) + int(counts[ids == class_id].sum())
    total = sum(pixels.values())
    return Profile(
        images=sum(read_footer(file).num_rows for file in files_of(root, "masks", partition)),
        class_pixels={names[class_id]: pixels[class_id] for class_id in sorted(pixels)},
        mean_confidence=confidence / total if total else None,
    )
