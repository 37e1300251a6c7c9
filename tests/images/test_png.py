"""Decoding, encoding and resizing of PNG and JPEG files, against Pillow; codes of rejects."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from images import png
from images.masks import read_mask
from runtime.errors import RejectError
from schemas.classes import load_taxonomy

LIMIT = 1_000_000
sizes = st.tuples(st.integers(1, 24), st.integers(1, 24))
rgb = sizes.flatmap(lambda size: arrays(np.uint8, (*size, 3)))
grey = sizes.flatmap(lambda size: arrays(np.uint8, size))


def _save(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, bits: int, colour_type: int, rows: bytes, interlace=0) -> bytes:
    """A PNG of rows with their filter types."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, interlace)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _code(data: bytes, decode=png.decode_image, limit: int = LIMIT) -> str:
    with pytest.raises(RejectError) as caught:
        decode(data, limit)
    assert caught.value.message
    return caught.value.code


PIXELS = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
PLAIN = _save(Image.fromarray(PIXELS))


@given(rgb)
def test_images_survive_the_codec(pixels) -> None:
    assert np.array_equal(png.decode_image(png.encode(pixels), LIMIT), pixels)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png.encode(pixels)))), pixels)


@given(rgb, st.tuples(st.integers(1, 100), st.integers(1, 100)))
def test_nearest_neighbour_equals_pillows(pixels, size) -> None:
    height, width = size
    theirs = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
    assert np.array_equal(png.resize_nearest(pixels, height, width), np.asarray(theirs))
    assert np.array_equal(
        png.resize_nearest(pixels[..., 0], height, width), np.asarray(theirs)[..., 0]
    )


def test_other_resizing() -> None:
    halves = np.zeros((4, 4, 3), np.uint8)
    halves[:, 1::2] = 100
    assert (png.resize_image(halves, 2, 2, "area") == 50).all()
    assert png.resize_image(halves, 8, 8, "bilinear").shape == (8, 8, 3)
    assert set(np.unique(png.resize_image(halves, 3, 3, "nearest"))) <= {0, 100}


def test_counts_of_frames_that_keep_their_size_take_no_memory() -> None:
    counts = png.nearest_counts((6000, 8000), (6000, 8000))
    assert counts.shape == (6000, 8000)
    assert counts.strides == (0, 0)
    assert counts[0, 0] == 1


def test_grey_palette_alpha_and_one_bit_images() -> None:
    image = Image.fromarray(PIXELS)
    opaque = image.copy()
    opaque.putalpha(255)
    assert np.array_equal(png.decode_image(_save(opaque), LIMIT), PIXELS)
    assert png.decode_image(_save(image.convert("L")), LIMIT).shape == (8, 6, 3)
    assert png.decode_image(_save(image.convert("P")), LIMIT).shape == (8, 6, 3)
    few_bits = Image.fromarray(PIXELS[..., 0] % 2 * 255).convert("1")
    assert set(np.unique(png.decode_image(_save(few_bits), LIMIT))) == {0, 255}
    assert np.array_equal(png.decode_stored(_save(few_bits), LIMIT), PIXELS[..., 0] % 2)


def test_interlaced_images_are_read() -> None:
    """At 1x1, only the header differs from that of an image without Adam7."""
    data = _png(1, 1, 8, 2, b"\0\1\2\3", interlace=1)
    assert png.decode_image(data, LIMIT).tolist() == [[[1, 2, 3]]]


def test_four_bits_are_viewed_stretched_and_stored_unchanged() -> None:
    data = _png(2, 1, 4, 0, b"\0\x7c")
    assert png.decode_pixels(data, LIMIT).tolist() == [[7 * 17, 12 * 17]]
    assert png.decode_stored(data, LIMIT).tolist() == [[7, 12]]


def test_an_orientation_is_applied_as_viewers_do() -> None:
    turned, exif = Image.fromarray(PIXELS).rotate(180), Image.Exif()
    exif[0x112] = 3
    assert np.array_equal(png.decode_image(_save(turned, exif=exif), LIMIT), PIXELS)
    flat = Image.new("RGB", (8, 8), (9, 90, 200))
    flat.paste((200, 90, 9), (0, 0, 8, 4))
    buffer = io.BytesIO()
    flat.save(buffer, "JPEG", quality=95, exif=exif)
    found = png.decode_image(buffer.getvalue(), LIMIT)
    # Red below, blue above: the picture stands on its head.
    assert (found[1, 4] < found[6, 4]).tolist() == [True, False, False]
    assert png.decode_image(buffer.getvalue(), 64).shape == (8, 8, 3)
    assert _code(buffer.getvalue(), limit=63) == "too_large"
    assert _code(buffer.getvalue()[:200]) == "corrupt"


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (6, 4)])
def test_missing_rows_are_rejected(colour_type: int, channels: int) -> None:
    """Pillow would leave the rows below black."""
    data = _png(4, 4, 8, colour_type, 3 * (b"\0" + bytes([200]) * 4 * channels))
    assert _code(data) == "truncated"
    assert _code(data, png.decode_pixels) == "truncated"


@pytest.mark.parametrize("colour_type", [0, 2])
def test_a_flipped_bit_in_the_pixels_is_noticed(colour_type: int) -> None:
    data = bytearray(_save(Image.fromarray(PIXELS if colour_type else PIXELS[..., 0])))
    data[-20] ^= 1
    assert _code(bytes(data)) == "corrupt"


def test_transparency_by_chunk_is_noticed() -> None:
    data = _save(Image.fromarray(PIXELS), transparency=tuple(int(v) for v in PIXELS[0, 0]))
    assert _code(data) == "transparent"


def test_reasons_of_rejects() -> None:
    assert _code(b"") == "empty"
    assert _code(b"GIF89a" + PLAIN) == "format"
    assert _code(PLAIN[:20]) == "truncated"
    assert _code(PLAIN[:-12]) == "truncated"
    assert _code(PLAIN[: len(PLAIN) // 2]) == "truncated"
    assert _code(PLAIN, limit=47) == "too_large"
    see_through = Image.fromarray(PIXELS)
    see_through.putalpha(128)
    assert _code(_save(see_through)) == "transparent"
    assert _code(_save(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 200))) == "bit_depth"
    frames = [Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1].copy())]
    assert _code(_save(frames[0], save_all=True, append_images=frames[1:])) == "animated"
    damaged = bytearray(PLAIN)
    damaged[50] ^= 255
    assert _code(bytes(damaged)) == "corrupt"
    lying = bytearray(PLAIN)
    lying[16:20] = struct.pack(">I", 600)
    assert _code(bytes(lying)) == "corrupt"


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    assert _code(_png(100_000, 100_000, 8, 2, b""), limit=64_000_000) == "too_large"


def test_every_real_image_decodes_as_pillow_decodes_it(real) -> None:
    taxonomy = load_taxonomy("carla-0.8")
    for path in sorted(real.rglob("CameraRGB/*.png"))[::10]:
        theirs = np.asarray(Image.open(path).convert("RGB"))
        assert np.array_equal(png.decode_image(path.read_bytes(), LIMIT), theirs)
    for path in sorted(real.rglob("CameraSeg/*.png"))[::10]:
        theirs = np.asarray(Image.open(path))[..., 0]
        assert np.array_equal(read_mask(path.read_bytes(), LIMIT, taxonomy), theirs)


def _with_chunk(image: Image.Image, kind: bytes, data: bytes) -> bytes:
    """A PNG with one more chunk before its pixels."""
    saved = _save(image)
    place = saved.index(b"IDAT") - 4
    return saved[:place] + _chunk(kind, data) + saved[place:]


@pytest.mark.parametrize(
    ("kind", "data"), [(b"tRNS", bytes(300)), (b"eXIf", b"junk"), (b"gAMA", b"")]
)
def test_chunks_that_pillow_chokes_on_are_rejects_with_one_message(
    kind: bytes, data: bytes
) -> None:
    paletted = Image.fromarray(PIXELS).convert("P")
    messages = set()
    for _ in range(2):
        with pytest.raises(RejectError) as caught:
            png.decode_image(_with_chunk(paletted, kind, data), LIMIT)
        assert caught.value.code == "corrupt"
        messages.add(caught.value.message)
    # An address in memory would make the bytes of rejects.parquet others in each run.
    (message,) = messages
    assert " at 0x" not in message


def test_a_jpeg_of_a_few_bytes_is_a_reject_without_an_address() -> None:
    with pytest.raises(
        RejectError, match=r"corrupt: cannot be decoded: cannot identify image file$"
    ):
        png.decode_image(b"\xff\xd8\xff\xe0", LIMIT)
