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
    """A near-duplicate in another split, or a frame next to it.

    Attributes:
        bits: in which the hashes differ.
        leaves: whether the image is left out for it; if not, both splits were given.
    """

    id: str
    split: str
    bits: int
    leaves: bool = True


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
    """From nodes, finds the twins of each, as (key of the node, Twin)."""

    def expand(
        self, nodes: beam.PCollection[Node]
    ) -> tuple[beam.PCollection[tuple[NodeKey, Twin]], beam.PCollection[Remaining]]:
        """The graph: compare within bands, decide on each pair; also the pairs that remain."""
        pairs = (
            nodes
            | "Bands" >> beam.FlatMap(bands)
            | "GroupByBand" >> beam.GroupByKey()
            | "Compare" >> beam.FlatMapTuple(across_splits)
        )
        twins = pairs | "Twins" >> beam.FlatMapTuple(twins_of)
        return twins, pairs | "Remain" >> beam.FlatMapTuple(remaining_of)


def bands(node: Node) -> Iterator[tuple[tuple[int, int], Node]]:
    """A node under each band of its hash."""
    dhash = int(node.dhash, 16)
    for band in range(_BANDS):
        yield (band, dhash >> band * _BAND_BITS & (1 << _BAND_BITS) - 1), node


def across_splits(band: tuple[int, int], nodes: Iterable[Node]) -> Iterator[tuple[Node, Node]]:
    """Pairs of near-duplicates in different splits that share a band first here.

    The first of a pair gives way. A given one stays; else the one with more near-duplicates in this
    band gives way, so that few images are lost: one frame of a test split, say, rather than the
    many of train that show the same halt. With equally many, train gives way to validation and
    both to test. Of two given ones, neither does; the first is the smaller.
    """
    known = sorted(nodes)
    hashes = np.array([int(node.dhash, 16) for node in known], np.uint64)
    splits = np.array([rank(node.split) for node in known])
    images = np.array([node.images for node in known])
    weights = np.zeros(len(known), np.int64)
    for start, found in _close(hashes, splits):
        weights[start : start + len(found)] += (found * images[start:]).sum(axis=1)
        weights[start:] += (found * images[start : start + len(found), None]).sum(axis=0)

    def stays(index: int) -> tuple[bool, int, int, Node]:
        node = known[index]
        return node.given, -int(weights[index]), rank(node.split), node

    for start, found in _close(hashes, splits):
        for row, column in np.argwhere(found):
            one, other = start + int(row), start + int(column)
            if _first_band(hashes[one] ^ hashes[other]) == band[0]:
                first, second = sorted((one, other), key=stays)
                yield known[first], known[second]


def _close(
    hashes: npt.NDArray[np.uint64], splits: npt.NDArray[np.int64]
) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
    """Which nodes are near-duplicates in different splits, in blocks of rows.

    Yields:
        The index of the first row, and a matrix (rows, nodes from that index on) that is true at
        each such pair once, above the diagonal.
    """
    for start in range(0, len(hashes), _BLOCK):
        one, other = slice(start, start + _BLOCK), slice(start, None)
        found = np.bitwise_count(hashes[one, None] ^ hashes[None, other]) <= NEAR_DUPLICATE_BITS
        found &= splits[one, None] != splits[None, other]
        yield start, np.triu(found, k=1)


def _first_band(differing: np.uint64) -> int:
    """Index of the first band in which two hashes agree, from the bits in which they differ."""
    bits, mask = int(differing), (1 << _BAND_BITS) - 1
    return next(band for band in range(_BANDS) if not bits >> band * _BAND_BITS & mask)


def twins_of(first: Node, second: Node) -> Iterator[tuple[NodeKey, Twin]]:
    """The twin of the node that gives way, or of both if both were given."""
    bits = (int(first.dhash, 16) ^ int(second.dhash, 16)).bit_count()
    leaves = not first.given
    yield first.key, Twin(second.example, second.split, bits, leaves)
    if not leaves:
        yield second.key, Twin(first.example, first.split, bits, leaves)


def remaining_of(first: Node, second: Node) -> Iterator[Remaining]:
    """A pair that stays, because both splits were given."""
    if first.given:
        pairs = first.images * second.images
        yield Remaining(pairs, examples=((first.example, second.example),))
