"""Near-duplicates across splits: the search agrees with comparing all, and one side gives way."""

from itertools import combinations

import numpy as np
import pytest

from beam.ingest import near_duplicates
from beam.ingest.near_duplicates import NEAR_DUPLICATE_BITS, Node
from schemas.layout import SPLITS


@pytest.mark.parametrize("many", [8, 1024])
@pytest.mark.parametrize("seed", range(3))
def test_leaks_agree_with_comparing_all(
    seed: int, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The joins in plain Python: no close pair remains, and one side of each stays."""
    monkeypatch.setattr(near_duplicates, "_MAX_ALL_PAIRS", many)
    random = np.random.default_rng(seed)
    # Few seeds and few flipped bits, so that many pairs are close, in one band or in several.
    bases = random.integers(0, 2**64, 6, np.uint64)
    images = {}
    for i in range(600):
        flips = random.choice(64, random.integers(0, 4), replace=False)
        value = int(bases[i % 6]) ^ sum(1 << int(bit) for bit in flips)
        given = i % 50 == 0
        images[f"{i:04d}"] = (f"{value:016x}", SPLITS[int(random.integers(3))], given)
    ids: dict[tuple[str, str, bool], list[str]] = {}
    for name, key in images.items():
        ids.setdefault(key, []).append(name)
    nodes = [Node(*key, len(names), min(names)) for key, names in ids.items()]
    edges = _edges(nodes)
    assert len(edges) == len({frozenset((one.key, other.key)) for one, other in edges})
    expected = {
        frozenset((one.key, other.key))
        for one, other in combinations(nodes, 2)
        if one.split != other.split
        and (int(one.dhash, 16) ^ int(other.dhash, 16)).bit_count() <= NEAR_DUPLICATE_BITS
    }
    assert {frozenset((one.key, other.key)) for one, other in edges} == expected
    assert len(expected) > 500
    assert sorted(_edges(nodes[::-1])) == sorted(edges)

    twins = [found for edge in edges for found in near_duplicates.leaks_of(*edge)]
    left_out = {key for key, twin in twins if twin.left_out}
    assert all(not given for _, _, given in left_out)
    for one, other in (tuple(pair) for pair in expected):
        assert (one[2] and other[2]) or one in left_out or other in left_out
    # An image has a twin that stays if, and only if, there is one that is given as well.
    given = {name: key for name, key in images.items() if key[2]}
    close = [
        pair
        for pair in combinations(given, 2)
        if frozenset(given[name] for name in pair) in expected
    ]
    parts = [part for edge in edges for part in near_duplicates.remaining_of(*edge)]
    total = near_duplicates.RemainingLeaks.sum(parts[::-1])
    assert total == near_duplicates.RemainingLeaks.sum(
        [near_duplicates.RemainingLeaks.sum(parts[:2]), *parts[2:]]
    )
    assert total.pairs == len(close)
    stay = {key for key, twin in twins if not twin.left_out}
    assert {name for name in given if given[name] in stay} == {n for pair in close for n in pair}


def test_the_one_with_more_near_duplicates_gives_way() -> None:
    """A halt: one frame of test, which train shows ten times, and the other way round."""
    train = [Node(f"{1 << bit:016x}", "train", False, 1, f"t{bit}") for bit in range(10)]
    halt = Node(f"{0:016x}", "test", False, 1, "halt")
    left_out = {
        key for edge in _edges([*train, halt]) for key, _ in near_duplicates.leaks_of(*edge)
    }
    assert left_out == {halt.key}
    alone = Node(f"{1 << 20:016x}", "train", False, 1, "alone")
    many = [halt._replace(images=3), alone]
    assert [key for edge in _edges(many) for key, _ in near_duplicates.leaks_of(*edge)] == [
        alone.key
    ]
    # With one each, train gives way; and a given one never does.
    for given, loser in ((False, alone), (True, halt)):
        nodes = [halt, alone._replace(given=given)]
        assert [key for edge in _edges(nodes) for key, _ in near_duplicates.leaks_of(*edge)] == [
            loser.key
        ]


def _edges(nodes: list[Node]) -> list[tuple[Node, Node]]:
    in_bands = _grouped(pair for node in nodes for pair in near_duplicates.bands(node))
    return [
        edge for band, of in in_bands.items() for edge in near_duplicates.across_splits(band, of)
    ]


def _grouped(pairs) -> dict:
    found: dict = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found
