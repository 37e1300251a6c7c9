"""tf.data input pipelines over the TFRecord shards of a published dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import tensorflow as tf

from model.augment import augment
from model.plan import Plan
from model.shards import find_damaged, shard_paths
from schemas.classes import VOID, UInt8Array
from schemas.example import parsing_spec
from schemas.geometry import Geometry

_SHUFFLE_RECORDS = 4096
_PARALLEL_READS = 4


@contextmanager
def damaged_shards_as_user_errors(plan: Plan) -> Iterator[None]:
    """Turns TensorFlow's error about a damaged record into one that names the shard.

    Raises:
        UserError: a shard is damaged.
    """
    try:
        yield
    except tf.errors.DataLossError as error:
        if found := find_damaged(plan.folder, plan.manifest.shards):
            raise found from error
        raise


class DatasetInput:
    """Batches of a plan's dataset, padded to the sizes that a network takes.

    Images are padded by mirroring, masks with void. The last batch of a split may be smaller.

    Args:
        geometry: sizes that the network takes; by default, those of the plan's network.
    """

    def __init__(self, plan: Plan, geometry: Geometry | None = None) -> None:
        self.folder = plan.folder
        self.manifest = plan.manifest
        self.config = plan.config
        self.geometry = geometry or plan.geometry
        self.height, self.width = plan.manifest.config.height, plan.manifest.config.width
        self.class_table = plan.class_table
        self._paths: dict[str, list[str]] = {}

    def steps(self, split: str) -> int:
        """Number of batches in one pass over a split."""
        return -(-self.manifest.splits[split].records // self.config.batch_size)

    def training(self, first_epoch: int = 0) -> Any:
        """All epochs from ``first_epoch`` on as one stream, so that no epoch waits for its input.

        Order and augmentation depend only on the seed and the epoch's number. Batches are those of
        ``evaluation``, but shuffled, and with float images if they are augmented.
        """
        config = self.config
        in_memory = self._fits_memory("train")
        # Decoded here: ``batches`` is traced as a graph, which could not keep the pixels.
        epoch = self._epoch_from_memory() if in_memory else self._epoch_from_shards

        def batches(number: Any) -> Any:
            seed = tf.stack([tf.constant(config.seed, tf.int64), number])
            if config.augment == "off":
                return epoch(seed)

            def augmented(step: Any, batch: Any) -> Any:
                images, masks = batch
                key = tf.random.fold_in(seed, step)
                return augment(images, masks, key, config.crop, config.colour, config.weather)

            steps = epoch(seed).enumerate()
            return steps.map(augmented, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

        epochs = tf.data.Dataset.range(first_epoch, config.epochs)
        stream = self._pad(epochs.flat_map(batches)).prefetch(tf.data.AUTOTUNE)
        options = tf.data.Options()
        # With the autotuner, the end of a stream waits up to a minute until it wakes.
        options.autotune.enabled = False
        if in_memory:
            # Default optimizations copy the graph with all its pixels.
            options.experimental_optimization.apply_default_optimizations = False
        return stream.with_options(options)

    def evaluation(self, split: str) -> Any:
        """One pass over a split in the order of its shards.

        Returns:
            A ``tf.data.Dataset`` of (images uint8 (batch, height, width, 3), masks uint8 (batch,
            height, width, 1)).
        """
        batches = self._records(split).batch(self.config.batch_size)
        count = tf.data.experimental.assert_cardinality(self.steps(split))
        return self._pad(batches).apply(count).prefetch(tf.data.AUTOTUNE)

    def validation(self) -> Any:
        """The validation split, kept in memory if it fits."""
        batches = self.evaluation("validation")
        return batches.cache() if self._fits_memory("validation") else batches

    def pairs(self, split: str) -> Iterator[tuple[UInt8Array, UInt8Array]]:
        """Yields the images (height, width, 3) and masks (height, width) of a split."""
        for image, mask in self._records(split):
            yield image.numpy(), mask.numpy()[..., 0]

    def _records(self, split: str) -> Any:
        return self._decode(tf.data.TFRecordDataset(self._files(split)))

    def _files(self, split: str) -> list[str]:
        if split not in self._paths:
            shards = [shard for shard in self.manifest.shards if shard.split == split]
            self._paths[split] = shard_paths(self.folder, shards)
        return self._paths[split]

    def _fits_memory(self, split: str) -> bool:
        size = self.manifest.splits[split].records * self.height * self.width * 4
        return size <= self.config.cache_mib << 20

    @cached_property
    def _train_pixels(self) -> tuple[Any, Any]:
        """All images and masks of the train split; decoded once."""
        whole_split = self._records("train").batch(self.manifest.splits["train"].records)
        images, masks = next(iter(whole_split))
        return images, masks

    def _epoch_from_memory(self) -> Callable[[Any], Any]:
        images, masks = self._train_pixels

        def epoch(seed: Any) -> Any:
            order = tf.random.experimental.stateless_shuffle(tf.range(len(images)), seed)
            return (
                tf.data.Dataset.from_tensor_slices(order)
                .batch(self.config.batch_size)
                .map(lambda index: (tf.gather(images, index), tf.gather(masks, index)))
            )

        return epoch

    def _epoch_from_shards(self, seed: Any) -> Any:
        stateless_shuffle = tf.random.experimental.stateless_shuffle
        files = stateless_shuffle(tf.constant(self._files("train")), seed)
        records = tf.data.TFRecordDataset(files, num_parallel_reads=_PARALLEL_READS)
        # Encoded records take a tenth of the memory of pixels. They are shuffled in windows, since
        # Dataset.shuffle takes no seed that is known only when the epoch begins.
        windows = records.batch(_SHUFFLE_RECORDS)
        shuffled = windows.map(lambda window: stateless_shuffle(window, seed))
        return self._decode(shuffled.unbatch()).batch(self.config.batch_size)

    def _decode(self, records: Any) -> Any:
        spec = parsing_spec()
        size = (self.height, self.width)
        class_table = tf.constant(self.class_table)

        def decode(record: Any) -> tuple[Any, Any]:
            features = tf.io.parse_single_example(record, spec)
            image = tf.io.decode_png(features["image"], channels=3)
            mask = tf.io.decode_png(features["mask"], channels=1)
            mask = tf.gather(class_table, tf.cast(mask, tf.int32))
            return tf.ensure_shape(image, (*size, 3)), tf.ensure_shape(mask, (*size, 1))

        return records.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def _pad(self, batches: Any) -> Any:
        geometry, height, width = self.geometry, self.height, self.width
        if all(geometry.input_size(size) == size for size in (height, width)):
            return batches
        rows, columns = geometry.mirror(height), geometry.mirror(width)
        below, right = (geometry.output_size(size) - size for size in (height, width))
        padding = [(0, 0), (0, below), (0, right), (0, 0)]

        def pad(images: Any, masks: Any) -> tuple[Any, Any]:
            mirrored = tf.gather(tf.gather(images, rows, axis=1), columns, axis=2)
            return mirrored, tf.pad(masks, padding, constant_values=tf.constant(VOID, tf.uint8))

        return batches.map(pad, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
