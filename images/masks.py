"""Decodes a mask's PNG to class ids, from the pixels that a viewer would show.

How a PNG stores them decides nothing: a lossless optimiser reorders palettes, and 4 bits of grey
are shown as 8. The same picture gives the same class ids however it was saved, or is rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from images import png
from runtime.errors import RejectError, UserError
from schemas.classes import VOID, Colour, Taxonomy, UInt8Array
from schemas.config import SourceConfig

_MAX_QUOTED = 8
"""Values or colours that a reject's message quotes."""


def read_mask(
    data: bytes, max_pixels: int, taxonomy: Taxonomy, encoding: str = "auto", void: str = ""
) -> UInt8Array:
    """Class ids of a mask's PNG, uint8 (height, width); void is 255.

    Args:
        encoding: where the class is. ``red``: in the red channel, green and blue are 0; ``grey``:
            all channels hold it; ``colour``: the taxonomy's colours; ``index``: the stored number
            of a palette or single channel; ``channel:blue`` and so on: that channel, whatever the
            others hold; ``auto``: red, grey or colour, if only one of them fits.
        void: the values that ``with_void`` has made void; they mean nothing in a mask of colours.

    Raises:
        RejectError: the PNG cannot be decoded; mask_channels or mask_colours if it is not encoded
            like this; void_colours if it has colours, but ``void`` names values; ambiguous_mask if
            two readings differ; as for ``check_mask``.
    """
    if encoding == "index":
        return check_mask(png.decode_stored(data, max_pixels), taxonomy)
    if encoding.startswith("channel:"):
        channel = encoding.removeprefix("channel:")
        return check_mask(png.decode_channel(data, max_pixels, channel), taxonomy)
    return _from_viewed_pixels(png.decode_pixels(data, max_pixels), taxonomy, encoding, void)


def read_mask_for(
    data: bytes, image: UInt8Array, taxonomy: Taxonomy, config: SourceConfig
) -> UInt8Array:
    """Class ids of the mask of an image (height, width, 3), uint8 (height, width).

    Raises:
        RejectError: as for ``read_mask``, or size_mismatch.
    """
    mask = read_mask(data, config.max_pixels, taxonomy, config.mask_encoding, config.void)
    if mask.shape != image.shape[:2]:
        (height, width), (found_height, found_width) = image.shape[:2], mask.shape
        raise RejectError(
            "size_mismatch",
            f"expected {width}x{height} as the image, found {found_width}x{found_height}",
        )
    return mask


def _from_viewed_pixels(
    pixels: UInt8Array, taxonomy: Taxonomy, encoding: str, void: str
) -> UInt8Array:
    """Class ids of the pixels of a mask, (height, width) or RGB (height, width, 3)."""
    if encoding == "colour":
        return _from_colours(pixels, taxonomy, void)
    kind, values = classify_encoding(pixels)
    if encoding != "auto":
        if values is None or kind not in (encoding, "both"):
            raise RejectError("mask_channels", f"expected {_EXPECTED[encoding]}, {_found(pixels)}")
        return check_mask(values, taxonomy)
    if values is None:
        return _from_colours(pixels, taxonomy, void)
    top = int(values.max(initial=0))
    colour = (top, top, top) if kind == "grey" else (top, 0, 0)
    if not _is_class_colour(colour, taxonomy):
        return check_mask(values, taxonomy)
    # The pixels may be numbers or class colours, e.g. if all are grey or black.
    by_number = _or_reject(lambda: check_mask(values, taxonomy))
    by_colour = _or_reject(lambda: _from_colours(pixels, taxonomy, void))
    if isinstance(by_number, RejectError):
        if isinstance(by_colour, RejectError):
            raise by_number
        return by_colour
    if not isinstance(by_colour, RejectError) and not np.array_equal(by_number, by_colour):
        raise RejectError(
            "ambiguous_mask",
            f"values up to {top} are numbers and colours of taxonomy {taxonomy.name}, of different "
            "classes; name one with --mask_encoding red, grey or colour",
        )
    return by_number


def _is_class_colour(colour: Colour, taxonomy: Taxonomy) -> bool:
    try:
        return colour in taxonomy.id_by_colour
    except UserError:
        # Two classes share a colour, so the mask cannot be colour-coded.
        return False


def _or_reject(read: Callable[[], UInt8Array]) -> UInt8Array | RejectError:
    try:
        return read()
    except RejectError as error:
        return error


def check_mask(raw: UInt8Array, taxonomy: Taxonomy) -> UInt8Array:
    """Class ids of a mask's raw values, uint8 (height, width); void is 255.

    Raises:
        RejectError: unknown_class for values outside the taxonomy (as anti-aliased or resized
            masks have them), all_void if nothing is left to learn from.
    """
    unknown = taxonomy.unknown_values(raw)
    if unknown:
        message = f"values outside taxonomy {taxonomy.name}: {_list(unknown)}"
        raise RejectError("unknown_class", message)
    return _reject_all_void(taxonomy.class_ids(raw), taxonomy)


_EXPECTED = {
    "red": "the class in the red channel and 0 in green and blue",
    "grey": "the class in one channel, or in all three",
}


def classify_encoding(pixels: UInt8Array) -> tuple[str, UInt8Array | None]:
    """The encoding (red, grey, or both if all is black) and the values; else colour and None."""
    if pixels.ndim == 2:
        return ("grey" if pixels.any() else "both"), pixels
    # A maximum along whole rows of bytes is ten times as fast as one along the channel axis.
    highest = pixels.reshape(pixels.shape[0], -1).max(axis=0).reshape(-1, 3).max(axis=0)
    red = pixels[..., 0]
    if not highest[1:].any():
        return ("red" if highest[0] else "both"), np.ascontiguousarray(red)
    if np.array_equal(red, pixels[..., 1]) and np.array_equal(red, pixels[..., 2]):
        return "grey", np.ascontiguousarray(red)
    return "colour", None


def _from_colours(pixels: UInt8Array, taxonomy: Taxonomy, void: str) -> UInt8Array:
    if void:
        raise RejectError(
            "void_colours",
            f"--void {void} names values, but the mask holds colours; in a --taxonomy file, a "
            "colour may stand for 255",
        )
    rgb = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    ids, unknown = taxonomy.ids_of_colours(rgb)
    if unknown:
        message = f"colours outside taxonomy {taxonomy.name}: {_list(unknown)}"
        raise RejectError("mask_colours", message)
    return _reject_all_void(ids, taxonomy)


def _reject_all_void(ids: UInt8Array, taxonomy: Taxonomy) -> UInt8Array:
    # The maximum is fast, and settles the usual mask, which has no void.
    if ids.max(initial=0) == VOID and (ids == VOID).all():
        raise RejectError("all_void", f"every pixel is void in taxonomy {taxonomy.name}")
    return ids


def _found(pixels: UInt8Array) -> str:
    highest = pixels.reshape(-1, 1 if pixels.ndim == 2 else 3).max(axis=0)
    return f"found channels with values up to {', '.join(map(str, highest))}"


def _list(values: Sequence[object]) -> str:
    return ", ".join(map(str, values[:_MAX_QUOTED])) + (" …" if len(values) > _MAX_QUOTED else "")
