"""Assigns groups to splits and records to shards, by salted hashes; pure functions.

Images that belong together form a group. Each group has a position from 0 to 1, a salted hash that
decides its split. So an image keeps its split when others are added. Groups move to another split
only if that one would have no group, or would lack a class (``rebalance``).
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
"""Number of consecutive blocks that are permuted together: a share of a tenth is exactly one."""

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

    Ten consecutive blocks get evenly spaced positions in a seeded random order, so that even a
    short drive has all three splits.

    Args:
        step: usual distance of consecutive instants. It is rounded to a power of two, so that it
            seldom changes when images are added.
    """
    span = config.block_length << max(0, round(math.log2(max(step, 1))))
    index = instant // span
    cycle, slot = divmod(index, _CYCLE)
    order = _order_of_slots(config.seed, sequence, cycle)
    # Makes shares that are not multiples of a tenth right on average.
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
    """A group with the classes it holds.

    Attributes:
        split: as given by a list or folder; None if its position decides.
        classes: ids of the classes in its masks.
    """

    group: Group
    split: str | None
    classes: frozenset[int]


_CANDIDATES = 8
"""Number of groups with each class that are remembered as candidates for a move."""


@dataclass
class ClassBalance:
    """Number of groups with each class in each split; partial results merge in any order.

    Attributes:
        counts: number of groups by class and split.
        candidates: for each class, the groups with the lowest positions whose split is not given.
    """

    counts: Counter[tuple[int, str]] = field(default_factory=Counter)
    candidates: dict[int, list[GroupContent]] = field(default_factory=dict)

    def add(self, content: GroupContent, config: IngestConfig) -> None:
        """Adds a group, once."""
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
"""Pseudo-class that each group has."""


def wanted_splits(config: IngestConfig) -> list[str]:
    """The splits that have a share."""
    shares = {"train": 1.0, "validation": config.validation, "test": config.test}
    return [split for split in SPLITS if shares[split]]


def rebalance(balance: ClassBalance, config: IngestConfig) -> dict[str, str]:
    """Groups that get another split than their position says: split by name of the group.

    Each split gets a group, and each class that occurs in at least as many groups as there are
    splits. Classes are handled one by one, the rarest first. If a split lacks the class, the group
    with the lowest position that has it moves there, from a split that keeps all classes of the
    group. Moves give validation and test at most twice their share of all groups, or one group.
    """
    wanted = wanted_splits(config)
    moves = _Moves(Counter(balance.counts), config)
    groups = moves.groups_with(_ANY)
    shares = {"train": 1.0, "validation": 2 * config.validation, "test": 2 * config.test}
    labels = sorted(
        {label for label, _ in balance.counts},
        key=lambda label: (label != _ANY, moves.groups_with(label), label),
    )
    for label in labels:
        if moves.groups_with(label) < len(wanted):
            continue
        for split in reversed(wanted):
            most = max(1, math.ceil(shares[split] * groups))
            if not moves.counts[label, split] and moves.counts[_ANY, split] < most:
                moves.fill(split, label, balance.candidates.get(label, []))
    return moves.moved


@dataclass
class _Moves:
    """Number of groups by class and split after the moves so far, and these moves."""

    counts: Counter[tuple[int, str]]
    config: IngestConfig
    moved: dict[str, str] = field(default_factory=dict)

    def groups_with(self, label: int) -> int:
        return sum(self.counts[label, split] for split in wanted_splits(self.config))

    def fill(self, split: str, label: int, candidates: list[GroupContent]) -> None:
        """Moves the first of the candidates that can leave its split."""
        movable = [one for one in candidates if self._can_leave(one, one.classes)]
        if label == _ANY and not movable:
            # A split without a group is worse than one that loses a class.
            movable = [one for one in candidates if self._can_leave(one, frozenset())]
        if not movable:
            return
        content = movable[0]
        for each in content.classes | {_ANY}:
            self.counts[each, self._split_of(content)] -= 1
            self.counts[each, split] += 1
        self.moved[content.group.name] = split

    def _split_of(self, content: GroupContent) -> str:
        return self.moved.get(content.group.name) or split_at(content.group.position, self.config)

    def _can_leave(self, content: GroupContent, kept: frozenset[int]) -> bool:
        """Whether the group's split keeps these classes, and a group, without it."""
        return all(self.counts[label, self._split_of(content)] > 1 for label in kept | {_ANY})


def order_key(sample_id: str, config: IngestConfig) -> int:
    """64-bit salted hash that orders records; shards are ranges of it."""
    return _hash("order", config.seed, sample_id)


def shard_of(key: int, shards: int) -> int:
    """Index of the shard whose hash range holds ``key``."""
    return key * shards >> 64


def shard_count(records: int, record_bytes: int, config: IngestConfig) -> int:
    """Number of shards of a split: a power of two, so that growth seldom moves a record.

    It is rounded up from one shard per 32 records, up to 64, for parallel work, or from more shards
    if each would otherwise exceed the target size.

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
