"""How many images of a dataset a registered model has seen in its training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runtime.errors import UserError
from runtime.parquet import read_table
from runtime.storage import join
from schemas.layout import SOURCES

SEEN_IN = ("train", "validation")
"""Splits whose images have shaped a model: one gives its weights, the other chooses the epoch."""


def count_seen(uri: str, folder: str, splits: Sequence[str]) -> int | None:
    """Number of images of these splits that are in ``SEEN_IN`` of the dataset of the training.

    Equal images are those whose files have equal bytes. None if that dataset is gone.

    Args:
        folder: folder or URI of a published dataset.
    """
    import pyarrow.compute as pc

    from model import registry

    trained_on = registry.training_dataset(uri)
    if trained_on is None:
        return None
    images = _hashes(folder, splits)
    try:
        seen = _hashes(trained_on, SEEN_IN)
    except (OSError, UserError):
        return None
    return pc.sum(pc.is_in(images, value_set=seen)).as_py() or 0


def _hashes(folder: str, splits: Sequence[str]) -> Any:
    """SHA-256 of the image file of each record, a column of text."""
    columns = ["shard", "image_sha256"]
    rows = read_table(join(folder, SOURCES), columns, filters=[("split", "in", list(splits))])
    return rows.filter(rows["shard"].is_valid())["image_sha256"].combine_chunks()
