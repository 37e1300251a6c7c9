"""Masks with the class ids of another taxonomy are detected, and right ones are not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ingesting import run_ingest
from jobs import SMALL
from PIL import Image

from beam.ingest.numbering import (
    Reading,
    can_be_compared,
    check_numbering,
    distance,
    find_mix_up,
    other_readings,
)
from runtime.errors import UserError
from schemas.classes import Taxonomy, UInt8Array, load_taxonomy
from schemas.manifest import Manifest, load_manifest
from schemas.stats import PixelStats

TO_0914 = np.array([0, 3, 5, 22, 12, 6, 24, 1, 2, 9, 14, 4, 8], np.uint8)
"""The id in carla-0.9.14 of each class of carla-0.8."""

LUMA = np.array([round(0.299 * value) for value in range(256)], np.uint8)


def _as_expected(name: str, pixels: int = 10**6) -> PixelStats:
    """A dataset that is what a taxonomy expects."""
    taxonomy = load_taxonomy(name)
    shares, upper = (
        np.array([getattr(one.expected, key) if one.expected else 0 for one in taxonomy.classes])
        for key in ("share", "upper")
    )
    counts = np.round(shares * pixels).astype(np.int64)
    halves = np.round(counts * upper).astype(np.int64)
    return replace(PixelStats.zero(len(taxonomy)), class_pixels=counts, upper_pixels=halves)


def _renamed(stats: PixelStats, to: UInt8Array, classes: int) -> PixelStats:
    new = PixelStats.zero(classes)
    for made, old in (
        (new.class_pixels, stats.class_pixels),
        (new.upper_pixels, stats.upper_pixels),
    ):
        np.add.at(made, to[: len(old)], old)
    return new


CARLA = ["carla-0.8", "carla-0.9", "carla-0.9.14"]


@pytest.mark.parametrize("name", CARLA)
def test_what_is_expected_is_close(name: str) -> None:
    taxonomy = load_taxonomy(name)
    stats = _as_expected(name)
    assert distance(stats, Reading(taxonomy)) < 0.05
    assert find_mix_up(stats, taxonomy) is None
    assert min(distance(stats, one) for one in other_readings(taxonomy)) > 0.1
    assert distance(PixelStats.zero(len(taxonomy)), Reading(taxonomy)) == 0


@pytest.mark.parametrize("luma", [False, True])
@pytest.mark.parametrize("name", CARLA)
def test_expected_shares_are_shares(name: str, luma: bool) -> None:
    shares = Reading(load_taxonomy(name), luma).expected_shares()
    assert shares.shape == (256, 2)
    assert shares.min() > 0
    assert abs(shares.sum() - 1) < 1e-5


def test_the_older_numbering_of_the_same_values_is_no_mix_up() -> None:
    stats = _renamed(_as_expected("carla-0.8"), np.arange(13, dtype=np.uint8), 23)
    assert find_mix_up(stats, load_taxonomy("carla-0.9")) is None


def test_an_older_numbering_is_found() -> None:
    stats = _renamed(_as_expected("carla-0.8"), np.arange(13, dtype=np.uint8), 29)
    found = find_mix_up(stats, load_taxonomy("carla-0.9.14"))
    assert found is not None
    assert (found.reading.taxonomy.name, found.reading.luma) == ("carla-0.8", False)


def test_a_newer_numbering_that_fits_is_found() -> None:
    to = np.arange(29, dtype=np.uint8)
    to[23:] = 0
    stats = _renamed(_as_expected("carla-0.9.14"), to, 23)
    found = find_mix_up(stats, load_taxonomy("carla-0.9"))
    assert found is not None
    assert (found.reading.taxonomy.name, found.reading.luma) == ("carla-0.9.14", False)


@pytest.mark.parametrize("name", CARLA)
def test_luma_is_found(name: str) -> None:
    taxonomy = load_taxonomy(name)
    found = find_mix_up(_renamed(_as_expected(name), LUMA, len(taxonomy)), taxonomy)
    assert found is not None
    assert (found.reading.taxonomy.name, found.reading.luma) == (name, True)


def test_luma_is_what_pillow_makes() -> None:
    mask = np.zeros((1, 256, 3), np.uint8)
    mask[..., 0] = np.arange(256)
    assert np.array_equal(np.asarray(Image.fromarray(mask).convert("L"))[0], LUMA)


@pytest.mark.parametrize("values", [{0: 1.0}, {0: 0.7, 1: 0.3}, {0: 0.98, 1: 0.009, 7: 0.009}])
def test_few_values_say_nothing(values: dict[int, float]) -> None:
    stats = PixelStats.zero(13)
    for value, share in values.items():
        stats.class_pixels[value] = share * 1e6
        stats.upper_pixels[value] = share * 5e5
    assert find_mix_up(stats, load_taxonomy("carla-0.8")) is None


@pytest.mark.parametrize("name", ["cityscapes", "camvid-11", "lyft-challenge"])
def test_other_datasets_are_not_compared(name: str) -> None:
    assert not can_be_compared(load_taxonomy(name))


def test_a_file_of_the_users_is_compared_if_it_expects_something() -> None:
    carla = load_taxonomy("carla-0.9.14").model_dump() | {"name": "mine"}
    stats = _renamed(_as_expected("carla-0.8"), np.arange(13, dtype=np.uint8), 29)
    assert find_mix_up(stats, Taxonomy(**carla)) is not None
    assert find_mix_up(stats, Taxonomy(**carla | {"remap": {1: 1}})) is not None
    assert find_mix_up(stats, Taxonomy(**carla | {"remap": {28: 255}})) is None
    for label in carla["classes"]:
        label["expected"] = None
    assert find_mix_up(stats, Taxonomy(**carla)) is None


def test_scenes_are_no_mix_up(dataset: Path) -> None:
    manifest = load_manifest(dataset)
    stats = sum((PixelStats.from_json(one.stats) for one in manifest.shards), PixelStats.zero(13))
    assert distance(stats, Reading(load_taxonomy("carla-0.8"))) < 0.7
    for name in CARLA[:2]:
        taxonomy = load_taxonomy(name)
        renamed = _renamed(stats, np.arange(13, dtype=np.uint8), len(taxonomy))
        assert find_mix_up(renamed, taxonomy) is None


@pytest.fixture(scope="module")
def frames(real: Path) -> dict[str, list[UInt8Array]]:
    """Eight real masks of each drive, at 96x128."""
    return {
        drive: [
            np.asarray(Image.open(path).convert("RGB"))[::6, ::6, 0]
            for path in sorted((real / drive / drive / "CameraSeg").iterdir())[::12][:8]
        ]
        for drive in ("dataA", "dataB")
    }


def _stats(masks: list[UInt8Array], values: UInt8Array, classes: int) -> PixelStats:
    image = np.zeros((*masks[0].shape, 3), np.uint8)
    parts = (PixelStats.of(image, values[mask], classes) for mask in masks)
    return sum(parts, PixelStats.zero(classes))


AS_THEY_ARE = np.arange(256, dtype=np.uint8)


@pytest.mark.parametrize("drive", ["dataA", "dataB"])
@pytest.mark.parametrize(
    ("values", "name", "looks_like"),
    [
        (AS_THEY_ARE, "carla-0.8", None),
        (AS_THEY_ARE, "carla-0.9", None),
        (AS_THEY_ARE, "carla-0.9.14", ("carla-0.8", False)),
        (TO_0914, "carla-0.9.14", None),
        (np.where(TO_0914 > 22, 0, TO_0914), "carla-0.9", ("carla-0.9.14", False)),
        (LUMA, "carla-0.8", ("carla-0.8", True)),
        (LUMA, "carla-0.9", ("carla-0.8", True)),
        (LUMA, "carla-0.9.14", ("carla-0.8", True)),
    ],
)
def test_real_frames(
    frames: dict[str, list[UInt8Array]],
    drive: str,
    values: UInt8Array,
    name: str,
    looks_like: tuple[str, bool] | None,
) -> None:
    taxonomy = load_taxonomy(name)
    found = find_mix_up(_stats(frames[drive], values, len(taxonomy)), taxonomy)
    reading = found and (found.reading.taxonomy.name, found.reading.luma)
    assert reading == looks_like


@pytest.fixture
def as_luma(dataset: Path) -> Manifest:
    """A manifest whose shards' statistics are those of masks that became greyscale."""
    manifest = load_manifest(dataset)
    shards = []
    for shard in manifest.shards:
        stats = _renamed(PixelStats.from_json(shard.stats), LUMA, 13)
        shards.append(shard.model_copy(update={"stats": stats.to_json()}))
    return manifest.model_copy(update={"shards": shards})


def test_the_check_says_what_to_do(
    as_luma: Manifest, dataset: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    check_numbering(load_manifest(dataset))
    assert capfd.readouterr().err == ""
    with pytest.raises(UserError, match=r"look like the luma of carla-0\.8") as caught:
        check_numbering(as_luma)
    message = str(caught.value)
    assert "\n" not in message
    assert "RGB masks with --mask_encoding red, or --taxonomy_check off to go on" in message
    config = as_luma.config.model_copy(update={"taxonomy_check": "off"})
    check_numbering(as_luma.model_copy(update={"config": config}))
    assert "warning: the masks were read as taxonomy carla-0.8" in capfd.readouterr().err


def test_few_images_are_only_warned_of(
    as_luma: Manifest, capfd: pytest.CaptureFixture[str]
) -> None:
    train = as_luma.splits["train"].model_copy(update={"records": 7})
    check_numbering(as_luma.model_copy(update={"splits": {"train": train}}))
    assert "(7 images are too few to be sure)" in capfd.readouterr().err


def test_a_mix_up_is_not_published(copy: Path, tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"taxonomy": "carla-0.9.14"})
    with pytest.raises(UserError, match=r"look like carla-0\.8 .*pass --taxonomy carla-0\.8, or"):
        run_ingest(copy, tmp_path / "out", config)
    assert not [path for path in (tmp_path / "out/small").iterdir() if path.name[0] != "."]
