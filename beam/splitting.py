"""Which split and which shard an id belongs to: pure functions of the id and the config.

An id's split does not depend on other ids, so an image never changes its split when others are
added.
"""

from __future__ import annotations

import hashlib
import re

from schemas.config import IngestConfig

_CYCLE = 10
"""Number of consecutive blocks that are assigned together: a share of a tenth is exactly one."""

_FRAME_NUMBER = re.compile(r"(\d+)$")

_MIN_RECORDS_A_SHARD = 32
_PARALLEL_SHARDS = 64


def split_of(sample_id: str, config: IngestConfig, group: str | None = None) -> str:
    """``train``, ``validation`` or ``test`` for an id.

    With ``image`` and ``folder``, a salted hash decides. With ``block``, frames of one folder that
    have the same ``number // block_length`` stay together, and every ten consecutive blocks are
    assigned in a seeded random order, so that short drives get all three splits, too. An id that
    does not end in a number is a block of its own. Ids of one ``group`` stay together, whatever
    their names are.
    """
    place = _uniform("group", config.seed, group) if group else _place(sample_id, config)
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
    """Number of shards of a split: a power of two, so that growth seldom moves a record.

    There are enough shards to work on in parallel (one per 32 records, up to 64), and more if each
    would otherwise exceed the target size; the number is rounded up to a power of two.

    Args:
        records: number of samples in the split.
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
    # With the jitter, shares that are not multiples of a tenth are right on average.
    jitter = _uniform("jitter", config.seed, stretch, cycle)
    return (order.index(slot) + jitter) / _CYCLE


def _uniform(*parts: object) -> float:
    return _hash(*parts) / 2**64


def _hash(*parts: object) -> int:
    text = "\0".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
