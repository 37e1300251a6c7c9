"""Which split and which shard an image belongs to: pure functions.

Images that belong together form a group, and a group has a position from 0 to 1, a salted hash. The
position decides the split, so an image does not change its split when others are added. Only where a
split would have no group, or would lack a class, groups are assigned otherwise (``rebalance``).
"""

from __future__ import annotations

import hashlib
import math
from bisect import insort
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from schemas.config import IngestConfig
from schemas.layout import SPLITS

_CYCLE = 10
"""Number of consecutive blocks that are placed together: a share of a tenth is exactly one."""

_MIN_RECORDS_A_SHARD = 32
_PARALLEL_SHARDS = 64


class Group(NamedTuple):
    """Images that stay in one split.

    Attributes:
        name: unique in the dataset.
        position: from 0 to 1; decides the split.
    """

    name: str
    position: float


def named_group(kind: str, name: str, config: IngestConfig) -> Group:
    """A group that a hash of its name places; ``kind`` is image, folder or group."""
    return Group(name, _uniform(kind, config.seed, name))


def block(sequence: str, instant: int, step: float, config: IngestConfig) -> Group:
    """The block of a frame: about ``block_length`` consecutive frames of a sequence.

    Every ten consecutive blocks are placed in a seeded random order, so that short drives get all
    three splits, too.

    Args:
        step: usual distance of consecutive instants. It is rounded to a power of two, so that it
            seldom changes when images are added.
    """
    span = config.block_length << max(0, round(math.log2(max(step, 1))))
    index = instant // span
    cycle, slot = divmod(index, _CYCLE)
    order = _order_of_slots(config.seed, sequence, cycle)
    # With the jitter, shares that are not multiples of a tenth are right on average.
    jitter = _uniform("jitter", config.seed, sequence, cycle)
    return Group(f"{sequence}#{index}", (order.index(slot) + jitter) / _CYCLE)


@lru_cache(1024)
def _order_of_slots(seed: int, sequence: str, cycle: int) -> list[int]:
    return sorted(range(_CYCLE), key=lambda slot: _hash("slot", seed, sequence, cycle, slot))


def split_at(position: float, config: IngestConfig) -> str:
    """The split to which a position from 0 to 1 belongs: ``train``, ``validation`` or ``test``."""
    if position < config.test:
        return "test"
    if position < config.test + config.validation:
        return "validation"
    return "train"


class GroupContent(NamedTuple):
    """What a group holds.

    Attributes:
        split: as given from outside; None if its position decides.
        classes: ids of the classes in any of its masks.
    """

    group: Group
    split: str | None
    classes: frozenset[int]


_CANDIDATES = 8
"""Groups known for each class that may be moved to another split."""


@dataclass
class ClassBalance:
    """Which splits have groups with a class; partial results add up in any grouping.

    Attributes:
        counts: groups by class and split.
        candidates: the groups with the lowest places by class, whose split was not given.
    """

    counts: Counter[tuple[int, str]] = field(default_factory=Counter)
    candidates: dict[int, list[GroupContent]] = field(default_factory=dict)

    def add(self, content: GroupContent, config: IngestConfig) -> None:
        """Adds one group, which must not be in yet."""
        split = content.split or split_at(content.group.position, config)
        for label in content.classes | {_ANY}:
            self.counts[label, split] += 1
            if content.split is None:
                self._propose(label, content)

    def merge(self, other: ClassBalance) -> None:
        """Adds the groups of another balance."""
        self.counts.update(other.counts)
        for label, contents in other.candidates.items():
            for content in contents:
                self._propose(label, content)

    def _propose(self, label: int, content: GroupContent) -> None:
        known = self.candidates.setdefault(label, [])
        if len(known) < _CANDIDATES or _by_place(content) < _by_place(known[-1]):
            insort(known, content, key=_by_place)
            del known[_CANDIDATES:]


def _by_place(content: GroupContent) -> tuple[float, str]:
    return content.group.position, content.group.name


_ANY = -1
"""Stands for any content: each group has it."""


def wanted_splits(config: IngestConfig) -> list[str]:
    """The splits that have a share."""
    shares = {"train": 1.0, "validation": config.validation, "test": config.test}
    return [split for split in SPLITS if shares[split]]


def rebalance(found: ClassBalance, config: IngestConfig) -> dict[str, str]:
    """Groups that get another split than their position says: split by name of the group.

    Rule: no split is without a group, and a class that occurs in at least as many groups as there
    are splits occurs in each split. Where one lacks a class, the group with the lowest position that
    has it moves there from a split that keeps all classes of the group. The rarest class is first.
    With moved groups, validation and test have at most twice their share of all groups, or one.
    """
    wanted = wanted_splits(config)
    moving = _Moves(Counter(found.counts), config)
    groups = moving.groups_with(_ANY)
    shares = {"train": 1.0, "validation": 2 * config.validation, "test": 2 * config.test}
    labels = sorted(
        {label for label, _ in found.counts},
        key=lambda label: (label != _ANY, moving.groups_with(label), label),
    )
    for label in labels:
        if moving.groups_with(label) < len(wanted):
            continue
        for split in reversed(wanted):
            most = max(1, math.ceil(shares[split] * groups))
            if not moving.counts[label, split] and moving.counts[_ANY, split] < most:
                moving.fill(split, label, found.candidates.get(label, []))
    return moving.moved


@dataclass
class _Moves:
    """Groups by class and split while groups move, and the moves."""

    counts: Counter[tuple[int, str]]
    config: IngestConfig
    moved: dict[str, str] = field(default_factory=dict)

    def groups_with(self, label: int) -> int:
        return sum(self.counts[label, split] for split in wanted_splits(self.config))

    def fill(self, split: str, label: int, candidates: list[GroupContent]) -> None:
        """Moves the first of the candidates that can leave its split."""
        able = [one for one in candidates if self._can_leave(one, one.classes)]
        if label == _ANY and not able:
            # A split without a group is worse than one that loses a class.
            able = [one for one in candidates if self._can_leave(one, frozenset())]
        if not able:
            return
        one = able[0]
        for each in one.classes | {_ANY}:
            self.counts[each, self._split_of(one)] -= 1
            self.counts[each, split] += 1
        self.moved[one.group.name] = split

    def _split_of(self, one: GroupContent) -> str:
        return self.moved.get(one.group.name) or split_at(one.group.position, self.config)

    def _can_leave(self, one: GroupContent, kept: frozenset[int]) -> bool:
        return all(self.counts[label, self._split_of(one)] > 1 for label in kept | {_ANY})


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


def _uniform(*parts: object) -> float:
    return _hash(*parts) / 2**64


def _hash(*parts: object) -> int:
    text = "\0".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
