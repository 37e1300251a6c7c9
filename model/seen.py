"""How many images of a dataset a registered model has seen in its training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model.plan import REGISTERED
from runtime.errors import UserError
from runtime.parquet import read_table
from runtime.storage import join
from schemas.layout import SOURCES

SEEN_IN = ("train", "validation")
"""Splits whose images have shaped a model: one gives its weights, the other chooses the epoch."""


def count_seen(uri: str, folder: str, splits: Sequence[str]) -> int | None:
    """Number of images of these splits that are in ``SEEN_IN`` of the dataset of the training.

    So are those that the model has seen whose weights the training started from, and so on. Equal
    images are those whose files have equal bytes. None if it is 0 and one of these datasets is
    gone.

    Args:
        folder: folder or URI of a published dataset.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from model import registry

    images = _hashes(folder, splits)
    seen, all_known = [images[:0]], True
    # A plain file's training is not known, like that of an encoder's weights.
    while uri.startswith(REGISTERED):
        trained_on, uri = registry.training_inputs(uri)
        try:
            seen += [_hashes(trained_on, SEEN_IN)] if trained_on else []
        except (OSError, UserError):
            trained_on = None
        all_known = all_known and trained_on is not None
    count = pc.sum(pc.is_in(images, value_set=pa.concat_arrays(seen))).as_py() or 0
    return count if count or all_known else None


def _hashes(folder: str, splits: Sequence[str]) -> Any:
    """SHA-256 of the image file of each record, a column of text."""
    columns = ["shard", "image_sha256"]
    rows = read_table(join(folder, SOURCES), columns, filters=[("split", "in", list(splits))])
    return rows.filter(rows["shard"].is_valid())["image_sha256"].combine_chunks()
