"""Batches of a dataset: order, memory cache, augmentation, padding, and damaged shards."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from jobs import flip_bit

from model.checkpoint import Checkpoint
from model.plan import plan
from model.records import Records
from runtime.errors import UserError
from schemas.classes import VOID
from schemas.config import TrainConfig
from schemas.geometry import Geometry
from schemas.manifest import load_manifest


@pytest.fixture(scope="module")
def augment():
    from model.augment import augment, draw

    def augmented(images, masks, seed=1, **bounds):
        config = TrainConfig(**{"crop": 1, "colour": 0, "weather": 0, **bounds})
        found = augment(images, masks, draw(0, 0, seed, len(images)), config)
        return tuple(map(np.asarray, found))

    return augmented


@pytest.fixture(scope="module")
def dataset_input() -> type:
    from model.dataset import DatasetInput

    return DatasetInput


def _plain(**changes) -> TrainConfig:
    return TrainConfig(
        **{"architecture": "unet", "batch_size": 5, "augment": "off", "epochs": 3, **changes}
    )


def _batches(dataset: Path, config: TrainConfig, first_epoch: int = 0) -> list:
    from model.dataset import DatasetInput

    source = DatasetInput(plan(str(dataset), config))
    return [tuple(map(np.asarray, batch)) for batch in source.training(first_epoch)]


def _images(batches: list) -> list[bytes]:
    return [image.tobytes() for images, _ in batches for image in images]


@pytest.mark.parametrize("cache_mib", [2048, 0])
def test_each_epoch_yields_each_record_once_in_an_order_of_its_own(dataset, cache_mib) -> None:
    config = _plain(cache_mib=cache_mib)
    batches = _batches(dataset, config)
    assert [len(images) for images, _ in batches] == ([5] * 6 + [2]) * 3
    epochs = [_images(batches[start : start + 7]) for start in (0, 7, 14)]
    assert len(set(epochs[0])) == 32
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    # A stream that begins at a later epoch is the same from there on.
    assert _images(_batches(dataset, config, first_epoch=1)) == epochs[1] + epochs[2]
    other = _images(_batches(dataset, _plain(cache_mib=cache_mib, seed=1)))
    assert other != epochs[0] + epochs[1] + epochs[2]


@pytest.mark.parametrize(("cache_mib", "passes"), [(2048, 1), (0, 6)])
def test_pixels_that_fit_memory_are_decoded_once(
    dataset, dataset_input, monkeypatch, cache_mib, passes
) -> None:
    pair, decoded = Records._pair, []

    def counted(records: Records, frame):
        decoded.append(frame)
        return pair(records, frame)

    monkeypatch.setattr(Records, "_pair", counted)
    source = dataset_input(plan(str(dataset), _plain(cache_mib=cache_mib)))
    first, again = (
        [image.tobytes() for images, _ in source.training() for image in np.asarray(images)]
        for _ in range(2)
    )
    assert first == again
    assert len(first) == 3 * 32
    # The first batch is made once more, to learn the shapes of all.
    counts = Counter(decoded)
    assert len(counts) == 32
    assert max(counts.values()) <= (1 if passes == 1 else passes + 2)


@pytest.mark.parametrize("cache_mib", [2048, 0])
def test_augmentation_follows_from_the_seed(dataset: Path, cache_mib: int) -> None:
    config = _plain(augment="on", cache_mib=cache_mib)
    first, again = _batches(dataset, config), _batches(dataset, config)
    for (images, masks), (same_images, same_masks) in zip(first, again, strict=True):
        assert np.array_equal(images, same_images)
        assert np.array_equal(masks, same_masks)
    later = _batches(dataset, config, first_epoch=2)
    assert np.array_equal(later[-1][0], first[-1][0])


@pytest.mark.parametrize("cache_mib", [2048, 0])
def test_a_shard_that_is_damaged_or_gone_is_named(dataset, tmp_path, cache_mib) -> None:
    from model.dataset import DatasetInput
    from model.fit import fit

    place = Path(shutil.copytree(dataset, tmp_path / "copy"))
    name = load_manifest(place).shard_names("train")[0]
    chosen = plan(str(place), _plain(architecture="unet", cache_mib=cache_mib, filters=1))
    shard = place / name
    whole = shard.read_bytes()
    flip_bit(shard)

    def train() -> None:
        fit(chosen, Checkpoint(tmp_path), lambda _: None, lambda _: None)

    with pytest.raises(UserError, match=f"shard {name} is damaged; ingest again"):
        train()
    shard.write_bytes(whole[:-1])
    expected = f"shard {name} has {len(whole) - 1:,} bytes, expected {len(whole):,}; ingest again"
    with pytest.raises(UserError, match=expected):
        next(DatasetInput(chosen).pairs("train"))
    shard.unlink()
    with pytest.raises(UserError, match=f"shard {name} cannot be read .No such file"):
        train()
    assert next(DatasetInput(chosen).pairs("test"))


def test_image_and_mask_move_together(augment) -> None:
    random = np.random.default_rng(0)
    # Blocks of one class, drawn in that class's grey, so that each pixel gives its mask's value.
    masks = np.kron(random.integers(0, 6, (8, 4, 4)), np.ones((8, 8))).astype(np.uint8)[..., None]
    images = np.repeat(masks * 40, 3, axis=-1)
    moved, moved_masks = augment(images, masks, crop=0.5)
    assert moved.shape == images.shape
    # Between blocks, greys are mixed.
    exact = np.all(np.isclose(moved, np.round(moved / 40) * 40, atol=1e-3), axis=-1)
    assert exact.mean() > 0.5
    assert np.array_equal(np.round(moved[exact][:, 0] / 40), moved_masks[exact][:, 0])
    assert not np.array_equal(moved_masks, masks)


def test_without_crop_and_colour_only_the_flip_is_left(augment) -> None:
    images = np.random.default_rng(0).integers(0, 256, (32, 6, 8, 3)).astype(np.uint8)
    masks = images[..., :1] % 13
    moved, moved_masks = augment(images, masks)
    flipped = 0
    for image, mask, after, mask_after in zip(images, masks, moved, moved_masks, strict=True):
        mirrored = np.array_equal(mask_after, mask[:, ::-1])
        assert mirrored or np.array_equal(mask_after, mask)
        assert np.allclose(after, image[:, ::-1] if mirrored else image, atol=1e-3)
        flipped += mirrored
    assert 8 <= flipped <= 24


def test_colour_changes_images_within_bounds_and_no_mask(augment) -> None:
    images = np.full((16, 4, 4, 3), (200, 100, 50), np.uint8)
    masks = np.full((16, 4, 4, 1), 3, np.uint8)
    moved, moved_masks = augment(images, masks, colour=0.2)
    assert np.array_equal(moved_masks, masks)
    brightness = moved.mean(axis=(1, 2, 3)) / images.mean()
    assert 0.75 < brightness.min() < 0.95
    assert 1.05 < brightness.max() < 1.25
    assert moved.min() >= 0
    assert moved.max() <= 255


def test_weather_changes_images_and_no_mask(augment) -> None:
    ramp = np.broadcast_to(np.arange(0, 256, 4, dtype=np.uint8)[:, None, None], (64, 64, 3))
    images = np.stack([ramp] * 32)
    masks = np.full((32, 64, 64, 1), 3, np.uint8)

    def moved(weather: float, seed: int = 1) -> np.ndarray:
        found, found_masks = augment(images, masks, seed, weather=weather)
        assert np.array_equal(found_masks, masks)
        return found

    strong = moved(1)
    assert np.array_equal(strong, moved(1))
    assert not np.array_equal(strong, moved(1, seed=2))
    assert np.allclose(moved(1e-6), images, atol=1)
    assert strong.min() >= 0
    assert strong.max() <= 255
    rows = strong.mean(axis=2)
    # Brighter stays brighter, but for noise, in whatever light.
    assert (np.diff(rows[:, ::8], axis=1) > -5).all()
    # Haze lifts black by up to 0.3 of a grey between 80 and 255.
    black = rows[:, 0].mean(axis=-1)
    assert black.min() < 15
    assert 20 < black.max() < 0.3 * 255 + 15
    # Gamma moves the middle both ways, and the tint moves red and blue apart.
    middle = rows[:, 32].mean(axis=-1)
    assert middle.min() < 115
    assert middle.max() > 145
    assert np.ptp(rows[:, 32, 0] / rows[:, 32, 2]) > 0.2


def test_other_sizes_than_the_networks_are_padded(dataset: Path, dataset_input) -> None:
    geometry = Geometry(multiple=20, remainder=0, margin=3)
    source = dataset_input(plan(str(dataset), _plain()), geometry)
    images, masks = next(iter(source.evaluation("test")))
    plain_image, plain_mask = next(source.pairs("test"))
    assert plain_image.shape == (32, 48, 3)
    assert images.shape[1:] == (40, 60, 3)
    assert masks.shape[1:] == (34, 54, 1)
    assert np.array_equal(images[0, 3:35, 3:51], plain_image)
    assert np.array_equal(images[0, :3, 3:51], plain_image[2::-1])
    assert np.array_equal(masks[0, :32, :48, 0], plain_mask)
    assert np.all(masks[0, 32:] == VOID)
    assert np.all(masks[0, :, 48:] == VOID)


def test_a_target_is_one_class_against_the_rest(dataset: Path, dataset_input) -> None:
    chosen = plan(str(dataset), _plain(target="Roads,RoadLines"))
    assert chosen.taxonomy.names == ("Rest", "RoadLines+Roads")
    whole = dataset_input(plan(str(dataset), _plain())).pairs("train")
    for (_, binary), (_, mask) in zip(dataset_input(chosen).pairs("train"), whole, strict=True):
        assert np.array_equal(binary, np.isin(mask, (6, 7)))
        assert np.array_equal(binary, chosen.taxonomy.class_ids(mask))
