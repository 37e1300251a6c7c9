"""Near-duplicates across splits (leaks), found by locality-sensitive hashing.

Two images are near-duplicates if their 64-bit difference hashes differ in at most three bits. Such
hashes agree in at least one of four bands of 16 bits, so only hashes that share a band are
compared. Images of a split that have the same hash are one element, a ``Node``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import add
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import numpy.typing as npt

from schemas.layout import SPLITS

NEAR_DUPLICATE_BITS = 3
"""Most bits, of 64, in which the difference hashes of two similar images may differ."""

_BANDS = NEAR_DUPLICATE_BITS + 1
_BAND_BITS = 64 // _BANDS
_BLOCK = 256
"""Number of hashes compared at once with the rest of their group; bounds the memory."""

_MAX_ALL_PAIRS = 4 * _BLOCK
"""Number of hashes with equal band up to which all are compared with each other."""

_EXAMPLES = 6

UInt64Array = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.intp]


NodeKey = tuple[str, str, bool]
"""Difference hash, split, and whether the split was given."""


class Node(NamedTuple):
    """Images of one split with the same difference hash.

    Attributes:
        given: whether a list or a folder gives their split.
        images: number of images; example: the first of their ids.
    """

    dhash: str
    split: str
    given: bool
    images: int
    example: str

    @property
    def key(self) -> NodeKey:
        """What the images have in common."""
        return self.dhash, self.split, self.given


class Leak(NamedTuple):
    """An image in another split that is a near-duplicate, or an adjacent frame.

    Attributes:
        bits: number of bits in which the hashes differ.
        left_out: whether the leaking image is left out; if not, both splits were given.
    """

    id: str
    split: str
    bits: int
    left_out: bool = True


class RemainingLeaks(NamedTuple):
    """Leaks that stay in the dataset, because the splits of both images were given.

    Attributes:
        pairs: number of pairs of near-duplicates.
        images: number of images in these pairs; evaluation: those in validation and test.
        beside: number of frames next to one of another split in their sequence.
        examples: ids of a few pairs.
    """

    pairs: int = 0
    images: int = 0
    evaluation: int = 0
    beside: int = 0
    examples: tuple[tuple[str, str], ...] = ()

    @classmethod
    def sum(cls, parts: Iterable[RemainingLeaks]) -> RemainingLeaks:
        """Adds partial results, in any order."""
        total = cls()
        for part in parts:
            pairs, images, evaluation, beside = map(add, total[:4], part[:4])
            examples = tuple(sorted({*total.examples, *part.examples})[:_EXAMPLES])
            total = cls(pairs, images, evaluation, beside, examples)
        return total


def split_rank(split: str) -> int:
    """Rank of a split: of two leaking images, that of the higher rank stays."""
    return SPLITS.index(split)


@dataclass
class FindLeaks(beam.PTransform):
    """From nodes, finds leaks as (NodeKey, Leak), and partial sums of those that stay."""

    def expand(
        self, nodes: beam.PCollection[Node]
    ) -> tuple[beam.PCollection[tuple[NodeKey, Leak]], beam.PCollection[RemainingLeaks]]:
        """The graph: group by band, compare, decide on each pair."""
        pairs = (
            nodes
            | "Bands" >> beam.FlatMap(bands)
            | "GroupByBand" >> beam.GroupByKey()
            | "Compare" >> beam.FlatMapTuple(across_splits)
        )
        leaks = pairs | "Leaks" >> beam.FlatMapTuple(leaks_of)
        return leaks, pairs | "Remain" >> beam.FlatMapTuple(remaining_of)


def bands(node: Node) -> Iterator[tuple[tuple[int, int], Node]]:
    """A node under each band of its hash."""
    dhash = int(node.dhash, 16)
    for band in range(_BANDS):
        yield (band, dhash >> band * _BAND_BITS & (1 << _BAND_BITS) - 1), node


def across_splits(band: tuple[int, int], nodes: Iterable[Node]) -> Iterator[tuple[Node, Node]]:
    """Pairs of near-duplicates in different splits; each pair in the first band it shares.

    The first node of a pair is left out, unless both splits were given:

    1. A node with a given split stays.
    2. Otherwise the node with more near-duplicates in this band is left out, so that few images are
       lost: one frame of test, say, rather than the many of train that show the same halt.
    3. With equally many, train is left out before validation, and validation before test.
    """
    ordered = sorted(nodes)
    hashes = np.array([int(node.dhash, 16) for node in ordered], np.uint64)
    splits = np.array([split_rank(node.split) for node in ordered])
    images = np.array([node.images for node in ordered])
    duplicates = np.zeros(len(ordered), np.int64)
    for ones, others in _close_pairs(hashes, splits, band[0]):
        np.add.at(duplicates, ones, images[others])
        np.add.at(duplicates, others, images[ones])

    def priority(index: int) -> tuple[bool, int, int, Node]:
        node = ordered[index]
        return node.given, -int(duplicates[index]), split_rank(node.split), node

    for ones, others in _close_pairs(hashes, splits, band[0]):
        for pair in zip(ones.tolist(), others.tolist(), strict=True):
            if _first_band(hashes[pair[0]] ^ hashes[pair[1]]) == band[0]:
                first, second = sorted(pair, key=priority)
                yield ordered[first], ordered[second]


def _close_pairs(
    hashes: UInt64Array, splits: IntArray, band: int
) -> Iterator[tuple[IntArray, IntArray]]:
    """Pairs of near-duplicates in different splits among hashes that share a band.

    If there are many hashes, the other bits are divided into four parts, and only hashes that share
    a part are compared. At most three bits differ, so near-duplicates share at least one part.

    Yields:
        Indices of the first and of the second of some pairs; each pair once.
    """
    if len(hashes) <= _MAX_ALL_PAIRS:
        yield from _compare(hashes, splits, np.arange(len(hashes)))
        return
    parts = _parts(hashes, band)
    for number, part in enumerate(parts):
        bits = hashes & part
        order = np.argsort(bits, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(bits[order])) + 1):
            for one, other in _compare(hashes, splits, group):
                seen = np.zeros(len(one), np.bool_)
                for earlier in parts[:number]:
                    seen |= (hashes[one] ^ hashes[other]) & earlier == 0
                yield one[~seen], other[~seen]


def _parts(hashes: UInt64Array, band: int) -> list[np.uint64]:
    """Bit masks of four parts outside of a band, equally selective among these hashes.

    A bit that is the same in most pictures, e.g. of the sky, selects little: each part gets as many
    of such bits.
    """
    first = band * _BAND_BITS
    others = [bit for bit in range(64) if not first <= bit < first + _BAND_BITS]
    ones = [np.count_nonzero(hashes & np.uint64(1 << bit)) for bit in others]
    imbalance = np.abs(np.array(ones) - len(hashes) / 2)
    order = np.argsort(imbalance, kind="stable")
    return [
        np.uint64(sum(1 << others[bit] for bit in order[part::_BANDS])) for part in range(_BANDS)
    ]


def _compare(
    hashes: UInt64Array, splits: IntArray, group: IntArray
) -> Iterator[tuple[IntArray, IntArray]]:
    """Compares all hashes of a group, given by ascending indices, with each other."""
    for start in range(0, len(group), _BLOCK):
        one, other = group[start : start + _BLOCK], group[start:]
        close = np.bitwise_count(hashes[one, None] ^ hashes[None, other]) <= NEAR_DUPLICATE_BITS
        close &= splits[one, None] != splits[None, other]
        rows, columns = np.nonzero(np.triu(close, k=1))
        yield one[rows], other[columns]


def _first_band(differing: np.uint64) -> int:
    """Index of the first band in which two hashes agree, from the bits in which they differ."""
    bits, mask = int(differing), (1 << _BAND_BITS) - 1
    return next(band for band in range(_BANDS) if not bits >> band * _BAND_BITS & mask)


def leaks_of(first: Node, second: Node) -> Iterator[tuple[NodeKey, Leak]]:
    """The leak of the first node, which is left out; or of both, which stay if both were given."""
    bits = (int(first.dhash, 16) ^ int(second.dhash, 16)).bit_count()
    left_out = not first.given
    yield first.key, Leak(second.example, second.split, bits, left_out)
    if not left_out:
        yield second.key, Leak(first.example, first.split, bits, left_out)


def remaining_of(first: Node, second: Node) -> Iterator[RemainingLeaks]:
    """The pairs of images that stay, because both splits were given."""
    if first.given:
        pairs = first.images * second.images
        yield RemainingLeaks(pairs, examples=((first.example, second.example),))
