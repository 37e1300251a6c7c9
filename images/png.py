"""Decodes PNG and JPEG bytes to checked arrays and encodes PNGs; a bad file is a RejectError.

kornia-rs (Rust's png crate) decodes the plain 8-bit RGB files that make up a Lyft export, more than
twice as fast as Pillow. It checks the CRC of every chunk and the number of decoded bytes. Pillow
decodes every other kind, and any file that kornia-rs refuses. Pillow checks neither and leaves
missing rows black, so both are checked here first, and zlib's own checksum with them. kornia-rs
also takes plain files that Pillow refuses for their zlib checksum or an empty gAMA chunk.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
from kornia_rs.io import decode_image_png_u8
from PIL import Image, ImageOps

from runtime.errors import RejectError
from schemas.classes import UInt8Array
from schemas.config import Resize, SourceConfig

Pixels = TypeVar("Pixels", bound=npt.NDArray[np.uint8 | np.float32])

# Sizes are checked against the job's own limit before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_Z_RLE = 3
"""zlib's strategy that compresses runs of equal bytes only."""

_EXIF = b"eXIf"
_DISPLAY_CHUNKS = frozenset({b"tRNS", _EXIF})
"""Chunks by which a viewer shows other pixels than those stored."""

NO_PIXEL_LIMIT = 1 << 31
"""``max_pixels`` for files whose size another step has checked."""

_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGBA: 4}

_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
"""Interlacing passes: first column and row, steps between columns and rows (PNG, section 8.2)."""

_INFLATE_BYTES = 1 << 20

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
        RejectError: empty, format, truncated, corrupt, animated or too_large.
    """
    if not data:
        raise RejectError("empty", "expected a PNG, found no bytes")
    if not data.startswith(_SIGNATURE):
        raise RejectError("format", f"expected a PNG, found {_format_of(data)}")
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
    _check_size(width, height, max_pixels)
    chunks = frozenset(kind for kind, _, _ in _chunks(data))
    if b"acTL" in chunks:
        raise RejectError("animated", "expected a still image, found an animation")
    return Header(width, height, depth, colour, interlace == 1, chunks)


def read_image(data: bytes, config: SourceConfig) -> UInt8Array:
    """RGB image of a file's bytes, as a job's parameters read it, uint8 (height, width, 3).

    Raises:
        RejectError: as for ``decode_image``.
    """
    image = decode_image(data, config.max_pixels)
    return np.ascontiguousarray(image[..., ::-1]) if config.image_channels == "bgr" else image


def decode_image(data: bytes, max_pixels: int) -> UInt8Array:
    """RGB pixels of a PNG or JPEG as a viewer shows them, uint8 (height, width, 3).

    Greyscale and palette images become RGB, an opaque alpha channel is dropped, and an EXIF
    orientation is applied.

    Raises:
        RejectError: as for ``decode_pixels``.
    """
    if data.startswith(_JPEG):
        return _decode_jpeg(data, max_pixels)
    pixels = decode_pixels(data, max_pixels)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def decode_pixels(data: bytes, max_pixels: int) -> UInt8Array:
    """Pixels of a PNG as a viewer shows them: uint8 (height, width) if grey, else (…, 3) in RGB.

    Raises:
        RejectError: as for ``read_header``, or transparent, bit_depth.
    """
    header = _read_8_bit_header(data, max_pixels)
    pixels = _decode_with_kornia(data, header)
    if pixels is not None:
        return pixels
    image = _decode_with_pillow(data, header)
    with _reject_damage():
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = _without_alpha(image if image.mode in ("RGBA", "LA") else image.convert("RGBA"))
        return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def decode_stored(data: bytes, max_pixels: int) -> UInt8Array:
    """Stored values of a single-channel PNG, uint8 (height, width), whatever a viewer shows.

    They are palette indices, or grey values of 1 to 16 bits.

    Raises:
        RejectError: as for ``read_header``, or mask_channels, bit_depth (a number above 255).
    """
    header = read_header(data, max_pixels)
    if header.colour_type not in (_GREY, _PALETTE):
        raise RejectError("mask_channels", "expected a palette or one channel, found colours")
    image = _decode_with_pillow(data, header)
    if header.colour_type == _PALETTE:
        return np.asarray(image)
    if header.bit_depth == 16:
        wide = np.asarray(image).astype(np.int64)
        if wide.max() > 255:
            raise RejectError("bit_depth", f"expected numbers up to 255, found {wide.max()}")
        return wide.astype(np.uint8)
    # Pillow stretches 1, 2 and 4 bits to 0..255.
    return np.asarray(image.convert("L")) // np.uint8(255 // (2**header.bit_depth - 1))


def decode_channel(data: bytes, max_pixels: int, channel: str) -> UInt8Array:
    """One channel of an 8-bit colour PNG, uint8 (height, width).

    Args:
        channel: red, green, blue or alpha.

    Raises:
        RejectError: as for ``read_header``; bit_depth; mask_channels if the channel is missing.
    """
    header = _read_8_bit_header(data, max_pixels)
    if header.colour_type not in (_RGB, _RGBA):
        raise RejectError("mask_channels", f"expected a colour PNG with {channel}, found none")
    image = _decode_with_pillow(data, header)
    if (name := channel[0].upper()) not in image.getbands():
        raise RejectError("mask_channels", f"expected a channel {channel}, found {image.mode}")
    return np.asarray(image.getchannel(name))


def decode_ids(data: bytes) -> UInt8Array:
    """The mask of a dataset's record: the grey values of an 8-bit PNG, uint8 (height, width).

    Raises:
        RejectError: as for ``read_header``, or mask_channels.
    """
    header = read_header(data, NO_PIXEL_LIMIT)
    if header.colour_type != _GREY or header.bit_depth != 8:
        raise RejectError("mask_channels", "expected one channel of 8 bits")
    return np.asarray(_decode_with_pillow(data, header))


def encode(pixels: UInt8Array) -> bytes:
    """PNG of an RGB image (height, width, 3) or of a single channel (height, width).

    Compression level 1 takes a third of the default's time on Lyft frames; files are 7% larger.
    """
    return _save(Image.fromarray(pixels))


def encode_palette(mask: UInt8Array, palette: bytes) -> bytes:
    """Palette PNG of class ids (height, width), which any viewer shows in the class colours.

    With 4 bits per pixel if that is enough, and run lengths instead of zlib's search for repeats,
    it takes a quarter of the bytes of ``encode``, in less time.
    """
    image = Image.fromarray(mask)
    image.putpalette(palette)
    return _save(image, bits=4 if mask.max() < 16 else 8, compress_type=_Z_RLE)


def resize_nearest(pixels: Pixels, height: int, width: int) -> Pixels:
    """Nearest-neighbour resize of (h, w) or (h, w, channels); picks the same pixels as Pillow."""
    source_height, source_width = pixels.shape[:2]
    if (source_height, source_width) == (height, width):
        return pixels
    rows, columns = _nearest_index(source_height, height), _nearest_index(source_width, width)
    # Rows first: they are copied whole, and fewer are left to pick columns from.
    return cast("Pixels", pixels.take(rows, axis=0).take(columns, axis=1))


def resize_image(pixels: UInt8Array, height: int, width: int, method: Resize) -> UInt8Array:
    """Resizes an RGB image (h, w, 3); bilinear and area are Pillow's, with antialiasing."""
    if method == "nearest" or pixels.shape[:2] == (height, width):
        return resize_nearest(pixels, height, width)
    resample = Image.Resampling.BILINEAR if method == "bilinear" else Image.Resampling.BOX
    return np.asarray(Image.fromarray(pixels).resize((width, height), resample))


@lru_cache(maxsize=16)
def nearest_counts(shape: tuple[int, int], size: tuple[int, int]) -> npt.NDArray[np.int64]:
    """How often a nearest-neighbour resize to ``size`` picks each pixel of ``shape``; (h, w)."""
    if shape == size:
        # One value in memory: frames that keep their size may be large, and several are cached.
        return np.broadcast_to(np.int64(1), shape)
    sides = zip(shape, size, strict=True)
    rows, columns = (np.bincount(_nearest_index(old, new), minlength=old) for old, new in sides)
    counts: npt.NDArray[np.int64] = np.outer(rows, columns)
    return counts


@lru_cache(maxsize=256)
def _nearest_index(old: int, new: int) -> npt.NDArray[np.intp]:
    # As Pillow does, accumulate the step: its rounding decides between two pixels.
    steps = np.full(new, old / new)
    steps[0] *= 0.5
    return np.minimum(np.cumsum(steps).astype(np.intp), old - 1)


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, int]]:
    """Type, content and CRC of each chunk before IEND."""
    view, offset = memoryview(data), len(_SIGNATURE)
    while offset + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        if kind == b"IEND":
            return
        end = offset + 8 + length
        crc = int.from_bytes(view[end : end + 4])
        yield kind, view[offset + 8 : end], crc
        offset = end + 4
    raise RejectError("truncated", f"the file ends after {len(data)} bytes, before its IEND chunk")


def _read_8_bit_header(data: bytes, max_pixels: int) -> Header:
    header = read_header(data, max_pixels)
    if header.bit_depth == 16:
        raise RejectError("bit_depth", "expected 8 bits a channel, found 16")
    return header


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise RejectError(
            "too_large", f"expected at most {max_pixels} pixels, found {width}x{height}"
        )


def _format_of(data: bytes) -> str:
    """The format of a file that is not a PNG, by its first bytes."""
    known = {
        _JPEG: "a JPEG (a mask must be lossless)",
        b"GIF8": "a GIF",
        b"BM": "a BMP",
        b"II*\0": "a TIFF",
        b"MM\0*": "a TIFF",
        b"\x93NUMPY": "a numpy array",
    }
    if data[4:12] == b"ftypavif":
        return "an AVIF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "a WebP"
    found = (name for magic, name in known.items() if data.startswith(magic))
    return next(found, f"a file that begins with {data[:8]!r}")


def _check_content(data: bytes, header: Header) -> None:
    """Checks each chunk's CRC, zlib's checksum and the number of decoded bytes.

    Raises:
        RejectError: corrupt, truncated.
    """
    inflate = zlib.decompressobj()
    found = 0
    try:
        for kind, content, crc in _chunks(data):
            if zlib.crc32(content, zlib.crc32(kind)) != crc:
                raise RejectError("corrupt", f"the checksum of chunk {kind!r} does not match")
            if kind == b"IDAT":
                rest: bytes | memoryview = content
                while rest and not inflate.eof:
                    found += len(inflate.decompress(rest, _INFLATE_BYTES))
                    rest = inflate.unconsumed_tail
        found += len(inflate.flush())
    except zlib.error as error:
        raise RejectError("corrupt", f"cannot be decoded: {error}") from error
    expected = _decoded_bytes(header)
    if found < expected or not inflate.eof:
        raise RejectError("truncated", f"expected {expected} bytes of pixels, found {found}")
    if found > expected:
        raise RejectError("corrupt", f"expected {expected} bytes of pixels, found {found}")


def _decoded_bytes(header: Header) -> int:
    """Bytes of all rows with their filter types, of all passes if interlaced."""
    bits = header.bit_depth * _CHANNELS[header.colour_type]
    sizes = [(header.width, header.height)]
    if header.interlaced:
        sizes = [
            (-(-(header.width - left) // across), -(-(header.height - top) // down))
            for left, top, across, down in _ADAM7
        ]
    return sum(
        height * (1 + (width * bits + 7) // 8) for width, height in sizes if width > 0 < height
    )


def _decode_jpeg(data: bytes, max_pixels: int) -> UInt8Array:
    with _reject_damage():
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
        _check_size(*image.size, max_pixels)
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


@contextmanager
def _reject_damage() -> Iterator[None]:
    """Turns what Pillow raises on damaged files, which are many types, into a RejectError."""
    try:
        yield
    except RejectError:
        raise
    except Exception as error:
        # One message ends with the address of the bytes in memory.
        message = str(error).partition(" <_io.")[0]
        raise RejectError("corrupt", f"cannot be decoded: {message}") from error


def _decode_with_kornia(data: bytes, header: Header) -> UInt8Array | None:
    if header.colour_type != _RGB or header.interlaced or header.chunks & _DISPLAY_CHUNKS:
        return None
    try:
        pixels: UInt8Array = decode_image_png_u8(data, (header.height, header.width), "rgb")
    except Exception:  # noqa: BLE001 - it raises nothing narrower
        return None
    return pixels


def _decode_with_pillow(data: bytes, header: Header) -> Image.Image:
    """Decodes any intact PNG and applies its EXIF orientation."""
    _check_content(data, header)
    with _reject_damage():
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        image.load()
        if image.size != (header.width, header.height):
            raise RejectError(
                "corrupt",
                f"expected {header.width}x{header.height} as its header says, found {image.size}",
            )
        return ImageOps.exif_transpose(image) if _EXIF in header.chunks else image


def _save(image: Image.Image, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1, **options)
    return buffer.getvalue()


def _without_alpha(image: Image.Image) -> Image.Image:
    lowest, _ = image.getchannel("A").getextrema()
    if lowest != 255:
        raise RejectError("transparent", f"expected an opaque image, found alpha from {lowest}")
    return image.convert("L" if image.mode == "LA" else "RGB")
