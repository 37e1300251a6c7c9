"""Decoded records of a split, in any order: from memory, or read anew from the shards each time."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from images import png
from model.shards import shard_paths, unusable
from runtime.errors import RejectError
from schemas.classes import UInt8Array
from schemas.example import CorruptRecordError, frame_spans, parse, read_records
from schemas.manifest import ShardInfo

Pixels = tuple[UInt8Array, UInt8Array]
"""Images (batch, height, width, 3) and masks (batch, height, width, 1)."""


class _Frame(NamedTuple):
    """Where a record lies: its shard's number, and the bytes of its frame."""

    shard: int
    offset: int
    size: int


class Records:
    """The records of some shards of a dataset, numbered in order.

    Args:
        dataset: folder or URI of the dataset.
        size: height and width of its images.
        class_table: the class id for each value of the dataset's masks, uint8 (256,).
        in_memory: whether to decode every record once, when the first is read.

    Raises:
        UserError: a shard is missing or damaged; ``read`` raises it, too.
        UnavailableError: the store does not answer.
    """

    def __init__(
        self,
        dataset: str,
        shards: Sequence[ShardInfo],
        size: tuple[int, int],
        class_table: UInt8Array,
        *,
        in_memory: bool,
    ) -> None:
        self._dataset = dataset
        self._shards = shards
        self._paths = shard_paths(dataset, shards)
        self._size = size
        self._class_table = class_table
        self._in_memory = in_memory
        self._frames = [frame for number in range(len(shards)) for frame in self._scan(number)]
        self._pool = ThreadPoolExecutor(os.cpu_count())
        self._decoded: Pixels | None = None

    def __len__(self) -> int:
        return len(self._frames)

    def read(self, numbers: npt.NDArray[np.intp]) -> Pixels:
        """Decoded images and masks of the records with these numbers."""
        if not self._in_memory:
            return self._decode(numbers)
        if self._decoded is None:
            self._decoded = self._decode(np.arange(len(self)))
        images, masks = self._decoded
        return images[numbers], masks[numbers]

    def _decode(self, numbers: npt.NDArray[np.intp]) -> Pixels:
        images = np.empty((len(numbers), *self._size, 3), np.uint8)
        masks = np.empty((len(numbers), *self._size, 1), np.uint8)

        def decode(place: int) -> None:
            images[place], masks[place, ..., 0] = self._pair(self._frames[numbers[place]])

        for _ in self._pool.map(decode, range(len(numbers))):
            pass
        return images, masks

    def _pair(self, frame: _Frame) -> Pixels:
        shard = self._shards[frame.shard]
        try:
            with open(self._paths[frame.shard], "rb") as file:
                file.seek(frame.offset)
                (record,) = read_records(io.BytesIO(file.read(frame.size)), shard.name)
            example = parse(record)
            image = png.decode_image(example.image, png.NO_PIXEL_LIMIT)
            mask = png.decode_ids(example.mask)
        except (OSError, CorruptRecordError, RejectError) as error:
            raise unusable(self._dataset, shard, "is damaged") from error
        if image.shape[:2] != self._size or mask.shape != self._size:
            raise unusable(self._dataset, shard, f"holds an image of {image.shape[:2]}")
        return image, self._class_table[mask]

    def _scan(self, number: int) -> list[_Frame]:
        shard = self._shards[number]
        try:
            with open(self._paths[number], "rb") as file:
                return [_Frame(number, *span) for span in frame_spans(file, shard.name)]
        except CorruptRecordError as error:
            raise unusable(self._dataset, shard, "is damaged") from error
