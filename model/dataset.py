"""tf.data input from the shards of a published dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf

from schemas.example import parsing_spec
from schemas.manifest import Manifest

_SHUFFLE_RECORDS = 4096


def batches(
    folder: Path, manifest: Manifest, split: str, batch_size: int, seed: int | None = None
) -> Any:
    """A ``tf.data.Dataset`` of one pass over a split.

    Args:
        seed: shuffles each epoch anew where given; without it the order is the shards'.

    Returns:
        Batches of (image uint8 (batch, height, width, 3), mask uint8 (batch, height, width, 1)),
        the last one as small as it comes.
    """
    config = manifest.config
    files = [str(folder / name) for name in manifest.shard_names(split)]
    records = tf.data.TFRecordDataset(
        files, num_parallel_reads=None if seed is None else min(len(files), 4)
    )
    if seed is not None:
        # Encoded records are shuffled: they take a tenth of the memory of pixels.
        records = records.shuffle(min(_SHUFFLE_RECORDS, manifest.splits[split].records), seed)
    spec = parsing_spec()
    size = (config.height or None, config.width or None)

    def decode(record: Any) -> tuple[Any, Any]:
        features = tf.io.parse_single_example(record, spec)
        image = tf.io.decode_png(features["image"], channels=3)
        mask = tf.io.decode_png(features["mask"], channels=1)
        return tf.ensure_shape(image, (*size, 3)), tf.ensure_shape(mask, (*size, 1))

    decoded = records.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    count = -(-manifest.splits[split].records // batch_size)
    batched = decoded.batch(batch_size).apply(tf.data.experimental.assert_cardinality(count))
    return batched.prefetch(tf.data.AUTOTUNE)
