"""A mask's classes are those of the pixels that a viewer shows, however the PNG stores them."""

import io
import random
import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from beam.ingest.remedies import remedy
from images import png
from images.masks import read_mask
from runtime.errors import RejectError
from schemas.classes import VOID, Taxonomy, load_taxonomy, with_void

LIMIT = 10_000
CARLA = load_taxonomy("carla-0.8")
COLOURS = np.frombuffer(CARLA.palette, np.uint8).reshape(256, 3)

ids = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 12))


def _save(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def _red(mask: np.ndarray) -> np.ndarray:
    zero = np.zeros_like(mask)
    return np.dstack([mask, zero, zero])


def _grey(mask: np.ndarray) -> np.ndarray:
    return np.dstack([mask] * 3)


def _coloured(mask: np.ndarray) -> np.ndarray:
    return COLOURS[mask]


def _palette(pixels: np.ndarray, seed: int, bits: int) -> bytes:
    """The same picture with a palette in a random order, as a lossless optimiser leaves it."""
    colours, index = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    order = list(range(len(colours)))
    random.Random(seed).shuffle(order)
    places = np.argsort(order)[index.reshape(pixels.shape[:2])]
    image = Image.fromarray(places.astype(np.uint8))
    image.putpalette(colours[order].tobytes())
    return _save(image, bits=bits)


def _with_alpha(pixels: np.ndarray) -> bytes:
    return _save(Image.fromarray(np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])))


CONTAINERS: dict[str, Callable[[np.ndarray, int], bytes]] = {
    "RGB": lambda pixels, _: _save(Image.fromarray(pixels)),
    "RGBA": lambda pixels, _: _with_alpha(pixels),
    "8-bit palette": lambda pixels, seed: _palette(pixels, seed, 8),
    "4-bit palette": lambda pixels, seed: _palette(pixels, seed, 4),
    "optimised": lambda pixels, _: _save(Image.fromarray(pixels), optimize=True),
}


@pytest.mark.parametrize("pixels_of", [_red, _grey, _coloured])
@pytest.mark.parametrize("container", CONTAINERS)
@given(mask=ids, seed=st.integers(0, 99))
def test_the_same_picture_has_the_same_classes_in_any_container(
    container: str, pixels_of: Callable[[np.ndarray], np.ndarray], mask: np.ndarray, seed: int
) -> None:
    data = CONTAINERS[container](pixels_of(mask), seed)
    assert np.array_equal(read_mask(data, LIMIT, CARLA), mask)


@given(mask=ids)
def test_one_channel_holds_the_class(mask: np.ndarray) -> None:
    for image in (Image.fromarray(mask), Image.fromarray(mask).convert("P")):
        assert np.array_equal(read_mask(_save(image), LIMIT, CARLA), mask)
    palette = png.encode_palette(mask, CARLA.palette)
    for encoding in ("auto", "colour", "index"):
        assert np.array_equal(read_mask(palette, LIMIT, CARLA, encoding), mask)


def test_stored_values_count_only_with_encoding_index() -> None:
    mask = np.array([[7, 10, 0]], np.uint8)
    reordered = _palette(_red(mask), 1, 4)
    assert not np.array_equal(png.decode_stored(reordered, LIMIT), mask)
    assert np.array_equal(read_mask(reordered, LIMIT, CARLA), mask)
    wide = _save(Image.fromarray(mask.astype(np.uint16)))
    with pytest.raises(RejectError, match="bit_depth"):
        read_mask(wide, LIMIT, CARLA)
    assert np.array_equal(read_mask(wide, LIMIT, CARLA, "index"), mask)
    with pytest.raises(RejectError, match=r"bit_depth.*300"):
        read_mask(_save(Image.fromarray(np.array([[300]], np.uint16))), LIMIT, CARLA, "index")
    with pytest.raises(RejectError, match="mask_channels"):
        read_mask(_save(Image.fromarray(_red(mask))), LIMIT, CARLA, "index")


def test_a_channel_can_be_named() -> None:
    mask = np.array([[7, 10, 0]], np.uint8)
    bgra = _with_alpha(_red(mask)[..., ::-1])
    with pytest.raises(RejectError, match="mask_colours"):
        read_mask(bgra, LIMIT, CARLA)
    assert np.array_equal(read_mask(bgra, LIMIT, CARLA, "channel:blue"), mask)
    with pytest.raises(RejectError, match="channel alpha"):
        read_mask(_save(Image.fromarray(_red(mask))), LIMIT, CARLA, "channel:alpha")
    for encoding, good, bad in (("red", _red, _grey), ("grey", _grey, _red)):
        data = _save(Image.fromarray(good(mask)))
        assert np.array_equal(read_mask(data, LIMIT, CARLA, encoding), mask)
        with pytest.raises(RejectError, match="mask_channels"):
            read_mask(_save(Image.fromarray(bad(mask))), LIMIT, CARLA, encoding)


@pytest.mark.parametrize(
    ("pixels", "code"),
    [
        (_red(np.array([[0, 77, 13]], np.uint8)), "unknown_class"),
        (COLOURS[np.array([[7, 8]])] + np.uint8(1), "mask_colours"),
        (np.array([[[128, 64, 128], [7, 0, 0]]], np.uint8), "mask_colours"),
    ],
)
def test_masks_of_no_encoding_are_rejects(pixels: np.ndarray, code: str) -> None:
    with pytest.raises(RejectError, match=code):
        read_mask(_save(Image.fromarray(pixels)), LIMIT, CARLA)


def test_greys_that_are_numbers_and_colours_must_be_named() -> None:
    labels = [
        {"id": 0, "name": "Rest", "colour": (0, 0, 0)},
        {"id": 1, "name": "Near", "colour": (2, 2, 2)},
        {"id": 2, "name": "Far", "colour": (1, 1, 1)},
    ]
    crossed = Taxonomy(name="crossed", classes=labels)
    data = _save(Image.fromarray(_grey(np.array([[0, 1, 2]], np.uint8))))
    with pytest.raises(RejectError, match=r"ambiguous_mask.*--mask_encoding"):
        read_mask(data, LIMIT, crossed)
    assert read_mask(data, LIMIT, crossed, "grey").tolist() == [[0, 1, 2]]
    assert read_mask(data, LIMIT, crossed, "colour").tolist() == [[0, 2, 1]]


def test_void_values_are_named() -> None:
    mask = np.array([[7, 255]], np.uint8)
    with pytest.raises(RejectError, match="unknown_class"):
        read_mask(_save(Image.fromarray(mask)), LIMIT, CARLA)
    named = with_void(CARLA, "255")
    assert read_mask(_save(Image.fromarray(mask)), LIMIT, named).tolist() == [[7, VOID]]
    assert named.mapping_sha256 == CARLA.mapping_sha256
    with pytest.raises(RejectError, match="all_void"):
        read_mask(_save(Image.fromarray(mask[:, 1:])), LIMIT, named)
    other = with_void(CARLA, "11,255")
    walls = _save(Image.fromarray(np.array([[11, 7]], np.uint8)))
    assert read_mask(walls, LIMIT, other).tolist() == [[VOID, 7]]
    assert other.mapping_sha256 != CARLA.mapping_sha256


@pytest.mark.parametrize("encoding", ["auto", "colour"])
def test_void_values_do_not_pass_over_colours_in_silence(encoding: str) -> None:
    coloured = _save(Image.fromarray(COLOURS[np.array([[7, 11]])]))
    assert read_mask(coloured, LIMIT, CARLA, encoding).tolist() == [[7, 11]]
    with pytest.raises(RejectError, match=r"void_colours.*--void 11 names values, but the mask"):
        read_mask(coloured, LIMIT, with_void(CARLA, "11"), encoding, "11")
    if encoding == "auto":
        # Black alone may be the number 0.
        black = _save(Image.fromarray(COLOURS[np.array([[0, 0]])]))
        assert read_mask(black, LIMIT, with_void(CARLA, "11"), "auto", "11").tolist() == [[0, 0]]


def test_a_region_that_is_void() -> None:
    challenge = load_taxonomy("lyft-challenge")
    region = challenge.void_regions[0].model_copy(update={"top": 0.0})
    hood = challenge.model_copy(update={"void_regions": (region,)})
    with pytest.raises(RejectError, match="all_void"):
        read_mask(_save(Image.fromarray(np.full((6, 2), 10, np.uint8))), LIMIT, hood)


STREET = np.repeat(np.repeat(np.array([[0, 1, 9], [7, 10, 12]], np.uint8), 20, 0), 20, 1)
NOISE = np.random.default_rng(0).integers(0, 3, STREET.shape).astype(np.uint8)


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        (_save(Image.fromarray(STREET * 20)), r"class ids times 20: .*remap: \{20: 1, 40: 2"),
        (_save(Image.fromarray(np.where(STREET, STREET, 255))), "--void 255"),
        (_save(Image.fromarray(STREET + NOISE * 2)), "JPEG compression or smooth resizing"),
        (_save(Image.fromarray(np.where(STREET, STREET * 2, 28))), "--taxonomy carla-0.9.14"),
        (_save(Image.fromarray(STREET.astype(np.uint16))), "--mask_encoding index"),
        (_with_alpha(_red(STREET)[..., ::-1]), "--mask_encoding channel:blue"),
        (_palette(COLOURS[STREET] + np.uint8(3), 0, 8), "--mask_encoding index"),
        (_save(Image.fromarray(_red(STREET) + _grey(NOISE * 40))), r"write the colours|colours in"),
        (b"\xff\xd8\xff\xe0JFIF", "export them as PNG"),
    ],
)
def test_a_systematic_reject_names_what_helps(data: bytes, advice: str) -> None:
    try:
        read_mask(data, LIMIT, CARLA)
        code = ""
    except RejectError as error:
        code = error.code
    assert code
    assert re.search(advice, remedy(code, data, CARLA)), (code, remedy(code, data, CARLA))
