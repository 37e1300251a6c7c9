"""A published dataset as batches for training and evaluation, on any backend of Keras."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

import numpy as np
from keras import ops

from model.augment import Draws, augment, draw
from model.feed import Feed
from model.plan import Plan
from model.records import Pixels, Records
from schemas.classes import VOID, UInt8Array
from schemas.geometry import Geometry


class DatasetInput:
    """Batches of a plan's dataset, padded to the sizes that a network takes.

    Images are padded by mirroring, masks with void. The last batch of a split may be smaller.

    Args:
        geometry: sizes that the network takes; by default, those of the plan's network.
        trained_at: ``Plan.input_size`` of the network's training, to which ``evaluation.predict``
            resizes images; by default, that of the plan's dataset.
    """

    def __init__(
        self,
        plan: Plan,
        geometry: Geometry | None = None,
        trained_at: dict[str, Any] | None = None,
    ) -> None:
        self.folder = plan.folder
        self.manifest = plan.manifest
        self.config = plan.config
        self.geometry = geometry or plan.geometry
        self.height, self.width = plan.manifest.config.height, plan.manifest.config.width
        self.trained_at = trained_at or plan.input_size()
        self.class_table = plan.class_table
        self._records = cache(self._open)

    def steps(self, split: str) -> int:
        """Number of batches in one pass over a split."""
        return -(-self.manifest.splits[split].records // self.config.batch_size)

    def training(self, first_epoch: int = 0) -> Feed:
        """All epochs from ``first_epoch`` on as one feed, so that no epoch waits for its input.

        Order and augmentation depend only on the seed and the epoch's number. Batches are those of
        ``evaluation``, but shuffled, and with float images if they are augmented.
        """
        config, steps, records = self.config, self.steps("train"), self._records("train")

        @lru_cache(maxsize=2)
        def order(epoch: int) -> Any:
            return np.random.default_rng([config.seed, epoch]).permutation(len(records))

        def batch(index: int) -> tuple[Pixels, Draws]:
            epoch, step = divmod(index, steps)
            epoch += first_epoch
            numbers = order(epoch)[step * config.batch_size :][: config.batch_size]
            return records.read(numbers), draw(config.seed, epoch, step, len(numbers))

        def prepare(pixels: Pixels, draws: Draws) -> Any:
            if config.augment == "on":
                pixels = augment(*pixels, draws, config)
            return self._pad(*pixels, ops)

        return Feed(batch, (config.epochs - first_epoch) * steps, prepare)

    def validation(self) -> Feed:
        """The validation split as a feed."""
        records = self._records("validation")
        return Feed(lambda step: self._batch(records, step), self.steps("validation"))

    def evaluation(self, split: str) -> Iterator[Pixels]:
        """One pass over a split in the order of its shards.

        Yields:
            Images uint8 (batch, height, width, 3), masks uint8 (batch, height, width, 1).
        """
        records = self._records(split)
        return (self._batch(records, step) for step in range(self.steps(split)))

    def pairs(self, split: str) -> Iterator[tuple[UInt8Array, UInt8Array]]:
        """Yields the images (height, width, 3) and masks (height, width) of a split."""
        records = self._records(split)
        for number in range(len(records)):
            images, masks = records.read(np.array([number]))
            yield images[0], masks[0, ..., 0]

    def _open(self, split: str) -> Records:
        size = self.manifest.splits[split].records * self.height * self.width * 4
        return Records(
            self.folder,
            [shard for shard in self.manifest.shards if shard.split == split],
            (self.height, self.width),
            self.class_table,
            in_memory=size <= self.config.cache_mib << 20,
        )

    def _batch(self, records: Records, step: int) -> Pixels:
        first = step * self.config.batch_size
        numbers = np.arange(first, min(first + self.config.batch_size, len(records)))
        images, masks = self._pad(*records.read(numbers), np)
        return images, masks

    def _pad(self, images: Any, masks: Any, xp: Any) -> tuple[Any, Any]:
        """Pads a batch with the functions of ``xp``: numpy, or ``keras.ops``."""
        geometry, height, width = self.geometry, self.height, self.width
        if all(geometry.input_size(size) == size for size in (height, width)):
            return images, masks
        rows, columns = geometry.mirror(height), geometry.mirror(width)
        below, right = (geometry.output_size(size) - size for size in (height, width))
        padding = [(0, 0), (0, below), (0, right), (0, 0)]
        mirrored = xp.take(xp.take(images, rows, axis=1), columns, axis=2)
        return mirrored, xp.pad(masks, padding, constant_values=VOID)
