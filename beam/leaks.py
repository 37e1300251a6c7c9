"""Leaks: images of different splits that are nearly the same, found by a join on their hashes.

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
"""Number of hashes compared at once with the rest of their band; it bounds the memory."""

_EXAMPLES = 6


NodeKey = tuple[str, str, bool]
"""Difference hash, split, and whether that was given."""


class Node(NamedTuple):
    """Images of one split with the same difference hash.

    Attributes:
        given: whether their split was given from outside.
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


class Twin(NamedTuple):
    """Why images are left out: an image of another split, and the bits in which they differ."""

    id: str
    split: str
    bits: int


class Remaining(NamedTuple):
    """Near-duplicates across splits that stay, because their splits were given.

    Attributes:
        pairs: number of pairs of images.
        images: number of images in any of them; evaluation: those of validation and test.
        beside: number of frames next to one of another split in their sequence.
        examples: ids of a few pairs.
    """

    pairs: int = 0
    images: int = 0
    evaluation: int = 0
    beside: int = 0
    examples: tuple[tuple[str, str], ...] = ()

    @classmethod
    def sum(cls, parts: Iterable[Remaining]) -> Remaining:
        """Adds up; the result does not depend on the order."""
        total = cls()
        for part in parts:
            pairs, images, evaluation, beside = map(add, total[:4], part[:4])
            few = tuple(sorted({*total.examples, *part.examples})[:_EXAMPLES])
            total = cls(pairs, images, evaluation, beside, few)
        return total


def rank(split: str) -> int:
    """Order in which splits keep their images: test before validation before train."""
    return SPLITS.index(split)


@dataclass
class FindLeaks(beam.PTransform):
    """From nodes, finds those to leave out, as (key, Twin), and the parts of what remains."""

    def expand(
        self, nodes: beam.PCollection[Node]
    ) -> tuple[beam.PCollection[tuple[NodeKey, Twin]], beam.PCollection[Remaining]]:
        """The graph: compare within bands, weigh both sides of each pair, decide."""
        twins = (
            nodes
            | "ByHash" >> beam.Map(lambda node: (node.dhash, node))
            | "GroupByHash" >> beam.GroupByKey()
            | "Bands" >> beam.FlatMapTuple(bands)
            | "GroupByBand" >> beam.GroupByKey()
            | "Compare" >> beam.FlatMapTuple(across_splits)
            | "BothWays" >> beam.FlatMap(both_ways)
            | "GroupByNode" >> beam.GroupByKey()
        )
        left_out = (
            twins
            | "Weigh" >> beam.FlatMapTuple(weigh)
            | "GroupByOther" >> beam.GroupByKey()
            | "GiveWay" >> beam.FlatMapTuple(give_way)
        )
        return left_out, twins | "Remain" >> beam.FlatMapTuple(remain)


def bands(dhash: str, nodes: Iterable[Node]) -> Iterator[tuple[tuple[int, int], tuple[Node, ...]]]:
    """The nodes of one hash, under each band of the hash."""
    known = tuple(sorted(nodes))
    for band in range(_BANDS):
        yield (band, int(dhash, 16) >> band * _BAND_BITS & (1 << _BAND_BITS) - 1), known


def across_splits(
    band: tuple[int, int], hashes: Iterable[tuple[Node, ...]]
) -> Iterator[tuple[Node, Node]]:
    """Pairs of nodes in different splits that are near-duplicates and share a band first here."""
    known = sorted(hashes)
    values = np.array([int(nodes[0].dhash, 16) for nodes in known], np.uint64)
    masks = np.array([sum(1 << rank(s) for s in {n.split for n in nodes}) for nodes in known])
    for one, other in close(values, masks, band[0]):
        for first in known[one]:
            for second in known[other]:
                if first.split != second.split and (one != other or first < second):
                    yield first, second


def close(
    hashes: npt.NDArray[np.uint64], splits: npt.NDArray[np.int64], band: int
) -> Iterator[tuple[int, int]]:
    """Indices of hashes, i <= j, that are close, first in this band and not all of one split.

    Args:
        splits: bit mask of the splits in which each hash occurs.
    """
    for start in range(0, len(hashes), _BLOCK):
        one, other = slice(start, start + _BLOCK), slice(start, None)
        differing = hashes[one, None] ^ hashes[None, other]
        found = np.bitwise_count(differing) <= NEAR_DUPLICATE_BITS
        both = splits[one, None] | splits[None, other]
        found &= both & (both - 1) > 0
        found &= np.triu(np.ones(found.shape, bool))
        for earlier in range(band):
            mask = np.uint64(((1 << _BAND_BITS) - 1) << earlier * _BAND_BITS)
            found &= (differing & mask) != 0
        for i, j in np.argwhere(found):
            yield start + int(i), start + int(j)


def both_ways(edge: tuple[Node, Node]) -> Iterator[tuple[NodeKey, tuple[Node, Node]]]:
    """Both nodes of a pair, each with itself and the other."""
    one, other = edge
    yield one.key, (one, other)
    yield other.key, (other, one)


def weigh(
    _: NodeKey, twins: Iterable[tuple[Node, Node]]
) -> Iterator[tuple[NodeKey, tuple[Node, Node, int, int]]]:
    """For each twin of a node, and for itself: how many images are near-duplicates of the node."""
    known = sorted(twins)
    weight = sum(other.images for _, other in known)
    for node, other in known:
        yield other.key, (other, node, 0, weight)
    node = known[0][0]
    yield node.key, (node, node, weight, 0)


def give_way(
    key: NodeKey, weighed: Iterable[tuple[Node, Node, int, int]]
) -> Iterator[tuple[NodeKey, Twin]]:
    """The twin for which a node is left out, if there is one.

    Of two near-duplicates, a given one stays. Else the one with more near-duplicates gives way, so
    that few images are lost: one frame of a test split, say, rather than the many of train that
    show the same halt. With equally many, train gives way to validation and both to test.
    """
    known = sorted(weighed)
    own = sum(weight for _, _, weight, _ in known)
    for node, other, _, weight in known:
        if other.key != node.key and not node.given:
            ours = (other.given, own, -rank(node.split))
            theirs = (False, weight, -rank(other.split))
            if ours > theirs:
                bits = (int(node.dhash, 16) ^ int(other.dhash, 16)).bit_count()
                yield key, Twin(other.example, other.split, bits)
                return


def remain(_: NodeKey, twins: Iterable[tuple[Node, Node]]) -> Iterator[Remaining]:
    """What stays of a node's near-duplicates because both splits were given."""
    both = [(node, other) for node, other in sorted(twins) if node.given and other.given]
    if both:
        node = both[0][0]
        pairs = [(node, other) for node, other in both if node < other]
        yield Remaining(
            sum(node.images * other.images for node, other in pairs),
            node.images,
            node.images if node.split != "train" else 0,
            0,
            tuple((node.example, other.example) for node, other in pairs)[:_EXAMPLES],
        )
