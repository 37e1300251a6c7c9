"""Plausibility checks of pairs and data sets, on drawn scenes and real frames."""

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beam.ingest import doubts
from beam.ingest.doubts import DoubtTotal
from flows.scenes import draw_scene
from images import png
from images.resize import resize_nearest
from schemas.classes import VOID, load_taxonomy

LIMIT = 1_000_000
SIZE = 96, 128


@pytest.fixture(scope="module")
def street():
    """24 synthetic pairs of 96x128: images and class ids."""
    drawn = [draw_scene(seed) for seed in range(24)]
    return [(resize_nearest(image, *SIZE), _thin(mask[..., 0])) for image, mask in drawn]


@pytest.fixture(scope="module", params=["dataA", "dataB"])
def drive(request, real: Path):
    """40 consecutive real pairs of 96x128."""
    images = sorted(Path(real, request.param, request.param, "CameraRGB").glob("*.png"))[:40]
    pairs = []
    for path in images:
        mask = path.parent.with_name("CameraSeg") / path.name
        image, raw = (png.decode_image(file.read_bytes(), LIMIT) for file in (path, mask))
        pairs.append((resize_nearest(image, *SIZE), _thin(raw[..., 0])))
    return pairs


def _thin(mask):
    return resize_nearest(np.ascontiguousarray(mask), *SIZE)


def _doubts(image, mask) -> list[str]:
    return doubts.doubts_of(doubts.score_pair(image, np.ascontiguousarray(mask)))


def _total(pairs, masks=None) -> DoubtTotal:
    masks = masks or [mask for _, mask in pairs]
    return DoubtTotal.of(
        doubts.score_pair(image, np.ascontiguousarray(mask))
        for (image, _), mask in zip(pairs, masks, strict=True)
    )


def test_right_scenes_raise_no_doubt(street) -> None:
    for image, mask in street:
        assert doubts.doubts_of(doubts.score_pair(image, mask)) == []
    total = _total(street)
    assert total.agreement > 0.85
    assert not doubts.edges_disagree(total)
    assert not doubts.channels_swapped(total)


@pytest.mark.parametrize(
    "change",
    [
        lambda masks: masks[1:] + masks[:1],
        lambda masks: [mask[:, ::-1] for mask in masks],
        lambda masks: [mask[::-1] for mask in masks],
        lambda masks: [np.roll(mask, 1, axis=1) for mask in masks],
        lambda masks: [np.roll(mask, (3, 3), axis=(0, 1)) for mask in masks],
    ],
    ids=["next", "mirrored", "upside down", "one pixel", "three pixels"],
)
def test_masks_of_other_scenes_disagree(street, change) -> None:
    total = _total(street, change([mask for _, mask in street]))
    assert doubts.edges_disagree(total)
    moved = change([mask for _, mask in street])
    doubted = [_doubts(image, mask) for (image, _), mask in zip(street, moved, strict=True)]
    assert sum(one == ["edges"] for one in doubted) > 0.9 * len(street)


def test_real_pairs_are_told_from_those_shifted_by_one_frame(drive) -> None:
    right = _total(drive)
    assert not any(_doubts(image, mask) for image, mask in drive)
    assert right.agreement > 0.8
    assert not doubts.edges_disagree(right)
    shifted = _total(drive[:-1], [mask for _, mask in drive[1:]])
    assert shifted.agreement < 0.4
    assert doubts.edges_disagree(shifted)


def test_three_classes_are_enough(drive) -> None:
    taxonomy = load_taxonomy("lyft-challenge")
    masks = [taxonomy.class_ids(mask) for _, mask in drive]
    right, shifted = _total(drive, masks), _total(drive[:-1], masks[1:])
    assert right.agreement > 0.65
    assert shifted.agreement < 0.5
    assert not doubts.edges_disagree(right)


def test_real_pairs_with_swapped_channels(drive) -> None:
    swapped = [(np.ascontiguousarray(image[..., ::-1]), mask) for image, mask in drive]
    assert not doubts.channels_swapped(_total(drive))
    assert doubts.channels_swapped(_total(swapped))
    assert _total(swapped).mean_tilt == pytest.approx(-_total(drive).mean_tilt)


def test_grey_images_and_few_pairs_are_not_called_swapped(street) -> None:
    grey = [(np.repeat(image[..., 1:2], 3, axis=2), mask) for image, mask in street]
    assert not doubts.channels_swapped(_total(grey))
    swapped = [(np.ascontiguousarray(image[..., ::-1]), mask) for image, mask in street]
    assert not doubts.channels_swapped(_total(swapped[: doubts.LEAST_SET_PAIRS - 1]))
    assert doubts.channels_swapped(_total(swapped))


def test_the_score_hardly_depends_on_the_size() -> None:
    image, raw = draw_scene(3)
    mask = np.ascontiguousarray(raw[..., 0])
    for height, width in ((600, 800), (300, 400), (96, 128)):
        score = doubts.score_pair(
            resize_nearest(image, height, width), resize_nearest(mask, height, width)
        )
        assert 16 <= score.cells <= 30
        assert score.agreement > 0.75
        assert score.blue_tilt == pytest.approx(doubts.blue_tilt(image), abs=3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3, 3), (4, 4), (2, 300_000)])
def test_small_and_narrow_pictures_are_not_judged(shape) -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (*shape, 3), np.uint8)
    score = doubts.score_pair(image, random.integers(0, 13, shape, np.uint8))
    assert doubts.EDGES not in doubts.doubts_of(score)
    assert doubts.picture_hash(image)


def test_a_picture_and_its_mask_have_one_size() -> None:
    with pytest.raises(ValueError, match=r"expected an image of \(4, 6, 3\), found \(4, 5, 3\)"):
        doubts.score_pair(np.zeros((4, 5, 3), np.uint8), np.zeros((4, 6), np.uint8))


def test_void_is_not_judged(street) -> None:
    image, mask = street[0]
    void = np.where(np.indices(mask.shape).sum(axis=0) % 2, mask, VOID).astype(np.uint8)
    assert doubts.score_pair(image, void).cells == 0
    half = mask.copy()
    half[:48] = VOID
    score = doubts.score_pair(image, half)
    assert 0 < score.cells < doubts.score_pair(image, mask).cells
    assert score.agreement > 0.8


def test_noise_agrees_by_chance_alone() -> None:
    random = np.random.default_rng(0)
    pairs = [
        (
            random.integers(0, 256, (*SIZE, 3), np.uint8),
            random.integers(0, 13, SIZE, np.uint8),
        )
        for _ in range(20)
    ]
    assert _total(pairs).agreement == pytest.approx(1 / 9, abs=0.06)


def test_constant_images_and_masks(street) -> None:
    image, mask = street[0]
    random = np.random.default_rng(0)
    flat, cap = np.full_like(image, 90), np.clip(random.normal(2, 1.5, image.shape), 0, 255)
    assert doubts.doubts_of(doubts.score_pair(image, np.zeros_like(mask))) == ["constant_mask"]
    for dull in (flat, cap.astype(np.uint8)):
        assert "constant_image" in doubts.doubts_of(doubts.score_pair(dull, mask))
    dark = (image * 0.1).astype(np.uint8)
    assert doubts.doubts_of(doubts.score_pair(dark, mask)) == []
    both = doubts.score_pair(flat, np.full_like(mask, VOID))
    assert doubts.doubts_of(both) == ["constant_image", "constant_mask"]


def test_one_pixel_makes_a_mask_that_is_not_constant() -> None:
    mask = np.zeros((600, 800), np.uint8)
    assert doubts.is_constant(mask)
    mask[311, 503] = 1
    assert not doubts.is_constant(mask)


def test_an_image_that_is_its_mask(street) -> None:
    taxonomy = load_taxonomy("carla-0.8")
    colours = np.frombuffer(taxonomy.palette, np.uint8).reshape(256, 3)
    image, mask = street[0]
    red = np.dstack([mask, np.zeros_like(mask), np.zeros_like(mask)])
    for picture in (red, np.dstack([mask] * 3), colours[mask]):
        assert "image_is_mask" in doubts.doubts_of(doubts.score_pair(picture, mask))
    # By its bytes, whatever was decoded from them.
    assert doubts.score_pair(image, mask, same_file=True).image_is_mask
    assert not doubts.score_pair(image, mask).image_is_mask
    red[0, 0] = 77
    assert not doubts.score_pair(red, mask).image_is_mask


def test_equal_pictures_in_another_encoding_have_one_hash(street) -> None:
    image, _ = street[0]
    hashes = set()
    for options in ({"compress_level": 1}, {"compress_level": 9}, {"dpi": (72, 72)}):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", **options)
        hashes.add(doubts.picture_hash(png.decode_image(buffer.getvalue(), LIMIT)))
    hashes.add(doubts.picture_hash(np.asfortranarray(image)))
    assert len(hashes) == 1
    other = image.copy()
    other[5, 5, 1] ^= 1
    assert doubts.picture_hash(other) not in hashes
    assert doubts.picture_hash(image.reshape(128, 96, 3)) not in hashes
    assert len(doubts.picture_hash(image)) == 32


def test_nothing_is_said_of_nothing() -> None:
    assert not doubts.edges_disagree(DoubtTotal())
    assert not doubts.channels_swapped(DoubtTotal())
    assert np.isnan([DoubtTotal().agreement, DoubtTotal().mean_tilt]).all()


def test_one_pair_is_no_verdict_on_a_data_set(street) -> None:
    (image, _), (_, mask) = next(pairwise(street))
    score = doubts.score_pair(image, mask)
    assert doubts.EDGES in doubts.doubts_of(score)
    assert not doubts.edges_disagree(DoubtTotal.of([score]))
