"""Which split and which shard an id belongs to: pure functions of the id and the config.

An id's split depends on nothing but itself, so an image never moves when others are added.
"""

from __future__ import annotations

import hashlib
import re

from schemas.config import IngestConfig

_CYCLE = 10
"""Blocks dealt out together: of ten consecutive blocks, a tenth each way is exactly one."""

_FRAME_NUMBER = re.compile(r"(\d+)$")

_MIN_RECORDS_A_SHARD = 32
_PARALLEL_SHARDS = 64


def split_of(sample_id: str, config: IngestConfig) -> str:
    """``train``, ``validation`` or ``test`` for an id.

    By ``image`` and by ``folder`` a salted hash decides. By ``block``, frames of one folder whose
    numbers share ``number // block_length`` stay together, and each ten consecutive blocks are
    dealt out in a seeded order, so that short drives too get all three splits. An id that does
    not end in a number is a block of its own.
    """
    place = _place(sample_id, config)
    if place < config.test:
        return "test"
    if place < config.test + config.validation:
        return "validation"
    return "train"


def order_key(sample_id: str, config: IngestConfig) -> int:
    """64-bit salted hash that orders records; shards are ranges of it."""
    return _hash("order", config.seed, sample_id)


def shard_of(key: int, shards: int) -> int:
    """Index of the shard whose hash range holds ``key``."""
    return key * shards >> 64


def shard_count(records: int, record_bytes: int, config: IngestConfig) -> int:
    """Shards of a split: a power of two, so that growth seldom moves a record.

    First enough of them to work on in parallel (up to 64, at least 32 records each), then as many
    as keep each below the target size.

    Args:
        records: samples in the split.
        record_bytes: estimated bytes of all its records.
    """
    if records == 0:
        return 0
    for_parallel = min(_PARALLEL_SHARDS, records // _MIN_RECORDS_A_SHARD)
    for_size = -(-record_bytes // (config.shard_mib << 20))
    return 1 << (max(for_parallel, for_size, 1) - 1).bit_length()


def _place(sample_id: str, config: IngestConfig) -> float:
    folder, _, name = sample_id.rpartition("/")
    if config.split_by == "folder":
        return _uniform("folder", config.seed, folder)
    number = _FRAME_NUMBER.search(name)
    if config.split_by == "image" or number is None:
        return _uniform("image", config.seed, sample_id)
    stretch = f"{folder}/{name[: number.start()]}"
    cycle, slot = divmod(int(number[1]) // config.block_length, _CYCLE)
    order = sorted(range(_CYCLE), key=lambda i: _hash("slot", config.seed, stretch, cycle, i))
    # The jitter keeps shares that are no multiple of a tenth right on average.
    jitter = _uniform("jitter", config.seed, stretch, cycle)
    return (order.index(slot) + jitter) / _CYCLE


def _uniform(*parts: object) -> float:
    return _hash(*parts) / 2**64


def _hash(*parts: object) -> int:
    text = "\0".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
