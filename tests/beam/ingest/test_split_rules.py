"""Sequences, groups, splits and shards of ids, by properties and fixed examples."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam.ingest.sequences import Frame, folder_of, frame_of, step_of
from beam.ingest.split_rules import (
    ClassBalance,
    Group,
    GroupContent,
    block,
    named_group,
    order_key,
    rebalance,
    shard_count,
    shard_of,
    split_at,
)
from schemas.config import IngestConfig
from schemas.layout import SPLITS

ids = st.text(st.characters(codec="utf-8"), max_size=40)
configs = st.builds(
    IngestConfig,
    split_by=st.sampled_from(["block", "folder", "image"]),
    block_length=st.integers(1, 50),
    seed=st.integers(0, 5),
    validation=st.floats(0, 0.4),
    test=st.floats(0, 0.4),
)


@pytest.mark.parametrize(
    ("sample_id", "sequence", "instant"),
    [
        ("dataA/dataA/000_0021", "dataA/dataA/000_", 21),
        ("left/000123", "", 123),
        ("drive/000123_right", "drive/", 123),
        ("drive/frontLeft/frame12", "drive/frame", 12),
        ("a/camera_2/12_x", "a/_x", 12),
        ("a/cam3_000004", "a/", 4),
        ("image_02/data/0000000005", "data/", 5),
        ("img_000012", "img_", 12),
        ("img_12_v2", "img__v2", 12),
        ("train/drive/7", "drive/", 7),
        ("rgb_a/1690000000123", "", 1690000000123),
        ("drives/rgb_b/1690000000123456789", "drives/", 1690000000123456789),
        ("tum/1305031102.1753", "", 1305031102175300000),
        ("20180724_112245_5", "", 1532431365500000),
        ("x/2018-07-24_11-22-45", "", 1532431365000000),
        (
            "s/CAM_FRONT/n015-2018-07-24-11-22-45+0800__CAM_FRONT__1532402927612460",
            "s/n015-2018-07-24-11-22-45+0800___",
            1532402927612460,
        ),
        ("aachen_000000_000019", "aachen_000000_", 19),
        ("no_number", "no_number", None),
        ("", "", None),
    ],
)
def test_a_name_says_sequence_and_instant(
    sample_id: str, sequence: str, instant: int | None
) -> None:
    found = frame_of(sample_id)
    assert (found.sequence, found.instant) == (sequence, instant)


@given(ids)
def test_any_name_has_a_sequence(sample_id: str) -> None:
    assert isinstance(frame_of(sample_id), Frame)


def test_a_step_is_that_of_each_camera() -> None:
    # Two cameras that are not triggered together.
    left = [("left", 100 * n) for n in range(9)]
    right = [("right", 100 * n + 3) for n in range(9)]
    assert step_of(left + right) == 100
    assert step_of([("a", 0), ("a", 5), ("a", 10), ("a", 5_000)]) == 5
    assert step_of([("a", 10**18), ("a", 10**18 + 50)]) == 50
    assert step_of([("a", 7)]) == step_of([]) == 1


def test_splits_and_orders_never_change() -> None:
    """Published datasets depend on these values; others would move images between splits."""
    config = IngestConfig()
    places = [block("dataA/dataA/000_", number, 1, config).position for number in range(5, 105, 10)]
    frames = [f"dataA/dataA/000_{number:04d}" for number in range(5, 105, 10)]
    other = IngestConfig(split_by="image", seed=3)
    by_image = [named_group("image", frame, other).position for frame in frames]
    assert "".join(split_at(place, config)[0] for place in places) == "ttvttttttt"
    assert "".join(split_at(place, other)[0] for place in by_image) == "tttttttvvt"
    assert order_key("dataA/dataA/000_0021", config) == 10453995252601422582


@given(st.integers(0, 10_000), st.sampled_from([1, 5, 20, 33.4, 1e9]), configs)
def test_frames_of_a_block_are_together(index: int, step: float, config: IngestConfig) -> None:
    first = block("a", index * round(step), step, config)
    span = int(first.name.rpartition("#")[2])
    inside = [
        block("a", index * round(step) + n * round(step), step, config)
        for n in range(3 * config.block_length)
    ]
    counts = Counter(one.name for one in inside)
    # The step is rounded to a power of two, so a block has up to 1.5 times as many frames.
    assert max(counts.values()) <= 1.5 * config.block_length + 1
    assert all(0 <= one.position < 1 for one in inside)
    assert min(int(one.name.rpartition("#")[2]) for one in inside) == span


def test_ten_blocks_give_eight_one_one() -> None:
    for seed in range(20):
        config = IngestConfig(block_length=7, seed=seed)
        counts = Counter(split_at(block("a", n, 1, config).position, config) for n in range(70))
        assert counts == {"train": 56, "validation": 7, "test": 7}


def test_shares_hold_on_average() -> None:
    config = IngestConfig(validation=0.15, test=0.25, block_length=1)
    places = {
        "image": [named_group("image", str(i), config).position for i in range(20_000)],
        "block": [block(f"f{i}", i % 97, 1, config).position for i in range(20_000)],
    }
    for found in places.values():
        counts = Counter(split_at(place, config) for place in found)
        assert abs(counts["validation"] / 20_000 - 0.15) < 0.01
        assert abs(counts["test"] / 20_000 - 0.25) < 0.01


def test_a_folder_is_the_same_for_all_cameras() -> None:
    assert folder_of("drive/left/7") == folder_of("drive/right/9") == folder_of("drive/8")
    assert folder_of("drive1/left/7") != folder_of("drive2/left/7")


contents = st.lists(
    st.builds(
        lambda place, classes, split: (place, classes, split),
        st.floats(0, 1, exclude_max=True),
        st.frozensets(st.integers(0, 5), max_size=4),
        st.sampled_from([None, None, None, *SPLITS]),
    ),
    max_size=40,
)


def _balanced(
    groups: list[GroupContent], config: IngestConfig
) -> tuple[dict[str, str], dict[str, str]]:
    """What moves, and the split of each group afterwards."""
    halves = ClassBalance(), ClassBalance()
    for index, one in enumerate(groups):
        halves[index % 2].add(one, config)
    halves[0].merge(halves[1])
    moved = rebalance(halves[0], config)
    return moved, {
        one.group.name: moved.get(one.group.name)
        or one.split
        or split_at(one.group.position, config)
        for one in groups
    }


@given(contents)
def test_no_split_is_without_a_group_where_there_are_enough(found) -> None:
    config = IngestConfig()
    groups = [
        GroupContent(Group(f"g{i}", place), split, classes)
        for i, (place, classes, split) in enumerate(found)
    ]
    moved, after = _balanced(groups, config)
    given_split = {one.group.name: one.split for one in groups if one.split}
    assert not moved.keys() & given_split.keys()
    free = len(groups) - len(given_split)
    if free >= 3:
        assert set(after.values()) == set(SPLITS)
    before = {one.group.name: one.split or split_at(one.group.position, config) for one in groups}
    if set(before.values()) == set(SPLITS):
        # No split loses a class that it had.
        for label in range(6):
            has = [one.group.name for one in groups if label in one.classes]
            assert {before[name] for name in has} <= {after[name] for name in has}
    # In any order of the groups.
    assert _balanced(groups[::-1], config)[0] == moved


def test_a_rare_class_is_in_each_split() -> None:
    config = IngestConfig()
    groups = [GroupContent(Group(f"g{i:02d}", i / 40), None, frozenset({0})) for i in range(40)]
    rare = [one._replace(classes=frozenset({0, 1})) for one in groups[20:23]]
    groups[20:23] = rare
    moved, after = _balanced(groups, config)
    assert moved == {"g20": "test", "g21": "validation"}
    assert after["g22"] == "train"
    # Two groups cannot be in three splits.
    groups[22] = groups[22]._replace(classes=frozenset({0}))
    assert _balanced(groups, config)[0] == {}


@given(ids, st.integers(1, 10_000), configs)
def test_shards_are_ranges_of_the_order(sample_id: str, shards: int, config: IngestConfig) -> None:
    key = order_key(sample_id, config)
    index = shard_of(key, shards)
    assert 0 <= index < shards
    assert index * 2**64 // shards <= key <= (index + 1) * 2**64 // shards


def test_shard_counts() -> None:
    config = IngestConfig(shard_mib=64)
    assert shard_count(0, 0, config) == 0
    assert shard_count(20, 1, config) == 1
    assert shard_count(160, 160 * 20_000, config) == 8
    assert shard_count(4_000, 4_000 * 20_000, config) == 64
    # 100 GB in shards of at most 64 MiB.
    count = shard_count(5_000_000, 10**11, config)
    assert 10**11 / count <= 64 << 20
    assert count & (count - 1) == 0
