"""Training input from a store: staged once, checked, and the same as from this machine."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from store import Store

from model import shards
from model.plan import plan
from runtime import storage
from runtime.errors import UserError
from schemas.config import TrainConfig
from schemas.layout import SPLITS
from schemas.manifest import load_manifest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return shards.cache_folder()


@pytest.fixture(scope="module")
def on_store(bucket: Store, dataset: Path) -> str:
    return bucket.put(dataset, "dataset")


def test_the_input_is_that_of_this_machine(on_store: str, dataset: Path, cache: Path) -> None:
    from model.dataset import DatasetInput

    config = TrainConfig(architecture="unet", batch_size=8, epochs=1, filters=2)
    ours, theirs = (DatasetInput(plan(place, config)) for place in (on_store, str(dataset)))
    for split in SPLITS:
        pairs = zip(ours.pairs(split), theirs.pairs(split), strict=True)
        for (image, mask), (other_image, other_mask) in pairs:
            assert np.array_equal(image, other_image)
            assert np.array_equal(mask, other_mask)
    for (images, _), (others, _) in zip(ours.training(), theirs.training(), strict=True):
        assert np.array_equal(images, others)
    assert {path.name for path in cache.iterdir()} == {
        shard.sha256 for shard in load_manifest(dataset).shards
    }


@pytest.mark.usefixtures("cache")
def test_cached_shards_are_reused_and_verified(bucket, on_store: str) -> None:
    manifest = load_manifest(on_store)
    first = shards.shard_paths(on_store, manifest.shards)
    Path(first[0]).write_bytes(b"damaged")
    assert shards.shard_paths(on_store, manifest.shards) == first
    digests = [storage.file_sha256(path) for path in first]
    assert digests == [shard.sha256 for shard in manifest.shards]
    bucket.stop()
    try:
        assert shards.shard_paths(on_store, manifest.shards) == first
    finally:
        bucket.start()


@pytest.mark.usefixtures("cache")
def test_shards_unused_for_a_month_are_deleted(on_store: str) -> None:
    manifest = load_manifest(on_store)
    first = [Path(path) for path in shards.shard_paths(on_store, manifest.shards)]
    old = time.time() - 31 * 24 * 3600
    for path in first:
        os.utime(path, (old, old))
    shards.shard_paths(on_store, manifest.shards[:1])
    assert [path.exists() for path in first] == [True, *[False] * (len(first) - 1)]


def test_a_shard_that_is_damaged_or_gone_is_named(bucket, dataset: Path, cache: Path) -> None:
    place = bucket.put(dataset, "damaged")
    manifest = load_manifest(place)
    name = manifest.shards[0].name
    for harm, how in (
        (lambda shard: storage.write_bytes(shard, b"damaged"), "is damaged"),
        (storage.remove, "is missing"),
    ):
        harm(storage.join(place, name))
        with pytest.raises(UserError, match=f"shard {name} {how}; ingest again to repair it$"):
            shards.shard_paths(place, manifest.shards)
        assert manifest.shards[0].sha256 not in {path.name for path in cache.iterdir()}
        assert list(cache.glob("*.part")) == []


def test_a_cache_that_cannot_be_written_is_one_line(on_store: str, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="XDG_CACHE_HOME names another place"):
        shards.shard_paths(on_store, load_manifest(on_store).shards)
