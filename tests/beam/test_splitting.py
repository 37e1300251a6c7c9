from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from beam.splitting import order_key, shard_count, shard_of, split_of
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


@given(ids, configs)
def test_every_id_has_a_split(sample_id: str, config: IngestConfig) -> None:
    assert split_of(sample_id, config) in SPLITS


def test_splits_and_orders_never_change() -> None:
    """Published datasets depend on these values; others would move images between splits."""
    frames = [f"dataA/dataA/000_{number:04d}" for number in range(5, 105, 10)]
    by_block = [split_of(frame, IngestConfig()) for frame in frames]
    by_image = [split_of(frame, IngestConfig(split_by="image", seed=3)) for frame in frames]
    assert "".join(split[0] for split in by_block) == "ttvttttttt"
    assert "".join(split[0] for split in by_image) == "tttttttvvt"
    assert order_key("dataA/dataA/000_0021", IngestConfig()) == 10453995252601422582


@given(st.integers(0, 10_000), configs, st.data())
def test_a_block_stays_together(block: int, config: IngestConfig, data: st.DataObject) -> None:
    config = config.model_copy(update={"split_by": "block"})
    frames = st.integers(block * config.block_length, (block + 1) * config.block_length - 1)
    splits = {split_of(f"a/000_{data.draw(frames):04d}", config) for _ in range(5)}
    assert len(splits) == 1


def test_ten_blocks_give_eight_one_one() -> None:
    for seed in range(20):
        config = IngestConfig(block_length=7, seed=seed)
        counts = Counter(split_of(f"a/000_{frame:04d}", config) for frame in range(70))
        assert counts == {"train": 56, "validation": 7, "test": 7}


def test_shares_hold_on_average() -> None:
    for split_by in ("image", "folder", "block"):
        config = IngestConfig(split_by=split_by, validation=0.15, test=0.25, block_length=1)
        counts = Counter(split_of(f"f{i}/x_{i % 97}", config) for i in range(20_000))
        assert abs(counts["validation"] / 20_000 - 0.15) < 0.01
        assert abs(counts["test"] / 20_000 - 0.25) < 0.01


def test_a_folder_stays_together() -> None:
    config = IngestConfig(split_by="folder")
    for folder in range(50):
        assert len({split_of(f"f{folder}/{i}", config) for i in range(10)}) == 1


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
