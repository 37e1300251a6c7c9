"""Decodes PNG bytes to checked arrays and encodes arrays; any bad file raises a RejectError.

kornia-rs (Rust's png crate) decodes the plain 8-bit RGB files that make up a Lyft export, more than
twice as fast as Pillow. Pillow decodes every other kind, and any file that kornia-rs refuses. The
two differ in two respects: kornia-rs relies on each chunk's CRC and ignores zlib's own checksum,
and it passes over a chunk such as gAMA whose content is none.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
from kornia_rs.io import decode_image_png_u8
from PIL import Image

from schemas.classes import VOID, Taxonomy, UInt8Array
from schemas.config import Resize
from schemas.errors import RejectError

Pixels = TypeVar("Pixels", bound=npt.NDArray[np.uint8 | np.float32])

# Sizes are checked against the job's own limit before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_RUNS = 3
"""zlib's Z_RLE."""

_BIT_DEPTHS = {
    _GREY: (1, 2, 4, 8, 16),
    _RGB: (8, 16),
    _PALETTE: (1, 2, 4, 8),
    _GREY_ALPHA: (8, 16),
    _RGBA: (8, 16),
}


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a PNG and the types of its chunks; sizes are in pixels.

    Attributes:
        chunks: types of all chunks before IEND.
    """

    width: int
    height: int
    bit_depth: int
    colour_type: int
    interlaced: bool
    chunks: frozenset[bytes]


def read_header(data: bytes, max_pixels: int) -> Header:
    """Reads the header of a PNG and checks that the file has all its chunks.

    Raises:
        RejectError: empty, not_png, truncated, corrupt, animated, bit_depth or too_large.
    """
    if not data:
        raise RejectError("empty", "expected a PNG, found no bytes")
    if not data.startswith(_SIGNATURE):
        raise RejectError("not_png", f"expected a PNG signature, found {data[:8]!r}")
    if len(data) < 33:
        raise RejectError("truncated", f"expected a header of 33 bytes, found {len(data)}")
    length, kind = struct.unpack_from(">I4s", data, 8)
    if kind != b"IHDR" or length != 13:
        raise RejectError("corrupt", f"expected an IHDR chunk of 13 bytes, found {kind!r}")
    width, height, depth, colour, _, _, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    if not width or not height or depth not in _BIT_DEPTHS.get(colour, ()) or interlace > 1:
        raise RejectError(
            "corrupt",
            f"impossible header: {width}x{height}, depth {depth}, colour type {colour}, "
            f"interlace {interlace}",
        )
    if width * height > max_pixels:
        raise RejectError(
            "too_large", f"expected at most {max_pixels} pixels, found {width}x{height}"
        )
    if depth == 16:
        raise RejectError("bit_depth", "expected 8 bits a channel, found 16")
    chunks = _chunk_types(data)
    if b"acTL" in chunks:
        raise RejectError("animated", "expected a still image, found an animation")
    return Header(width, height, depth, colour, interlace == 1, chunks)


def decode_image(data: bytes, max_pixels: int) -> UInt8Array:
    """RGB image, uint8 (height, width, 3).

    Greyscale and palette images become RGB; an opaque alpha channel is dropped.

    Raises:
        RejectError: as for ``read_header``, or transparent.
    """
    header = read_header(data, max_pixels)
    pixels = _decode_plain_rgb(data, header)
    if pixels is not None:
        return pixels
    image = _decode_any(data, header)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = _opaque(image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def decode_mask(data: bytes, max_pixels: int) -> UInt8Array:
    """Raw class values of a mask, uint8 (height, width), as the file holds them.

    The value is the red channel of an RGB mask (green and blue are 0, or the same as red), the
    grey value of a greyscale mask, or the index of a palette mask.

    Raises:
        RejectError: as for ``read_header``, or transparent, mask_channels.
    """
    header = read_header(data, max_pixels)
    pixels = _decode_plain_rgb(data, header)
    if pixels is not None:
        return _red(pixels)
    image = _decode_any(data, header)
    if header.colour_type == _PALETTE:
        return np.asarray(image)
    if header.colour_type == _GREY:
        # Pillow stretches 1, 2 and 4 bits to 0..255; the class is the value in the file.
        steps = 255 // (2**header.bit_depth - 1)
        return np.asarray(image.convert("L")) // np.uint8(steps)
    if image.mode in ("RGBA", "LA"):
        image = _opaque(image)
    return np.asarray(image) if image.mode == "L" else _red(np.asarray(image.convert("RGB")))


def check_mask(raw: UInt8Array, taxonomy: Taxonomy) -> UInt8Array:
    """Class ids of a raw mask, uint8 (height, width); void is 255.

    Raises:
        RejectError: unknown_class for values outside the taxonomy (as anti-aliased or resized
            masks have them), all_void if nothing is left to learn from.
    """
    unknown = taxonomy.unknown_values(raw)
    if unknown:
        shown = ", ".join(map(str, unknown[:8])) + (" …" if len(unknown) > 8 else "")
        raise RejectError("unknown_class", f"values outside taxonomy {taxonomy.name}: {shown}")
    ids = taxonomy.class_ids(raw)
    if not taxonomy.is_identity and (ids == VOID).all():
        raise RejectError("all_void", f"every pixel is void in taxonomy {taxonomy.name}")
    return ids


def encode(pixels: UInt8Array) -> bytes:
    """PNG of an RGB image (height, width, 3) or of a single channel (height, width).

    It uses compression level 1: 7% larger than zlib's default on Lyft frames, in a third of its
    time.
    """
    return _save(Image.fromarray(pixels))


def encode_palette(mask: UInt8Array, palette: bytes) -> bytes:
    """Palette PNG of class ids (height, width), which any viewer shows in the class colours.

    It uses 4 bits per pixel if that is enough, and run lengths instead of zlib's search for
    repeats: a quarter of the bytes that ``encode`` produces, in less time.
    """
    image = Image.fromarray(mask)
    image.putpalette(palette)
    return _save(image, bits=4 if mask.max() < 16 else 8, compress_type=_RUNS)


def resize_nearest(pixels: Pixels, height: int, width: int) -> Pixels:
    """Nearest-neighbour resize of (h, w) or (h, w, channels); picks the same pixels as Pillow."""
    source_height, source_width = pixels.shape[:2]
    if (source_height, source_width) == (height, width):
        return pixels
    rows, columns = _centres(source_height, height), _centres(source_width, width)
    # Copying whole rows last is ten times as fast as picking each pixel of the larger image.
    return cast("Pixels", pixels.take(columns, axis=1).take(rows, axis=0))


def resize_image(pixels: UInt8Array, height: int, width: int, method: Resize) -> UInt8Array:
    """Resizes an RGB image (h, w, 3); bilinear and area are Pillow's, with antialiasing."""
    if method == "nearest" or pixels.shape[:2] == (height, width):
        return resize_nearest(pixels, height, width)
    resample = Image.Resampling.BILINEAR if method == "bilinear" else Image.Resampling.BOX
    return np.asarray(Image.fromarray(pixels).resize((width, height), resample))


@lru_cache(maxsize=16)
def nearest_counts(shape: tuple[int, int], size: tuple[int, int]) -> npt.NDArray[np.int64]:
    """How often a nearest-neighbour resize to ``size`` picks each pixel of ``shape``; (h, w)."""
    rows, columns = (
        np.bincount(_centres(old, new), minlength=old) for old, new in zip(shape, size, strict=True)
    )
    counts: npt.NDArray[np.int64] = np.outer(rows, columns)
    return counts


@lru_cache(maxsize=256)
def _centres(old: int, new: int) -> npt.NDArray[np.intp]:
    # Pillow accumulates the step, so its rounding decides where a centre falls between two pixels.
    steps = np.full(new, old / new)
    steps[0] *= 0.5
    return np.minimum(np.cumsum(steps).astype(np.intp), old - 1)


def _chunk_types(data: bytes) -> frozenset[bytes]:
    kinds: set[bytes] = set()
    offset = len(_SIGNATURE)
    while offset + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        if kind == b"IEND":
            return frozenset(kinds)
        kinds.add(kind)
        offset += 12 + length
    raise RejectError("truncated", f"the file ends after {len(data)} bytes, before its IEND chunk")


def _decode_plain_rgb(data: bytes, header: Header) -> UInt8Array | None:
    if header.colour_type != _RGB or header.interlaced or b"tRNS" in header.chunks:
        return None
    try:
        pixels: UInt8Array = decode_image_png_u8(data, (header.height, header.width), "rgb")
    except Exception:  # noqa: BLE001 - it raises nothing narrower
        return None
    return pixels


def _decode_any(data: bytes, header: Header) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        image.load()
    except Exception as error:
        # Pillow raises many types on damaged files; the reject quotes its message.
        raise RejectError("corrupt", f"cannot be decoded: {error}") from error
    if image.size != (header.width, header.height):
        raise RejectError(
            "corrupt",
            f"expected {header.width}x{header.height} as its header says, found {image.size}",
        )
    return image


def _save(image: Image.Image, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1, **options)
    return buffer.getvalue()


def _opaque(image: Image.Image) -> Image.Image:
    lowest, _ = image.getchannel("A").getextrema()
    if lowest != 255:
        raise RejectError("transparent", f"expected an opaque image, found alpha from {lowest}")
    return image.convert("L" if image.mode == "LA" else "RGB")


def _red(pixels: UInt8Array) -> UInt8Array:
    # A maximum along whole rows of bytes is ten times as fast as one along the channel axis.
    highest = pixels.reshape(pixels.shape[0], -1).max(axis=0).reshape(-1, 3).max(axis=0)
    red = pixels[..., 0]
    if highest[1:].any() and not (
        np.array_equal(red, pixels[..., 1]) and np.array_equal(red, pixels[..., 2])
    ):
        raise RejectError(
            "mask_channels",
            "expected the class in the red channel and 0 in green and blue, "
            f"found values up to {highest[1]} and {highest[2]} there",
        )
    return np.ascontiguousarray(red)
