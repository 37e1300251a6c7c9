"""Advice on a fault that most rejected pairs share: what the files look like, and what helps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from images import png
from images.masks import classify_encoding
from runtime.errors import RejectError
from schemas.classes import VOID, Taxonomy, UInt8Array, builtin_taxonomies, load_taxonomy

_NOISE = 0.008
"""Share of pixels unlike both neighbours in their row: 0.002 in masks of 800x600, 0.017 and more in
the same after JPEG compression."""

_MANY = 64
"""Colours in one mask: more than any taxonomy has, as in a photograph."""


def remedy(code: str, data: bytes, taxonomy: Taxonomy) -> str:
    """Advice on a mask that was rejected, or an empty string.

    Args:
        code: the reject's code; data: bytes of the mask's file.
    """
    if code == "bit_depth":
        return "16 bits a channel: --mask_encoding index reads a single channel's numbers to 255"
    if code == "format" and data.startswith(b"\xff\xd8"):
        return "the masks are JPEGs, which change class ids: export them as PNG"
    if code not in ("unknown_class", "mask_colours", "mask_channels"):
        return ""
    try:
        pixels = png.decode_pixels(data, png.NO_PIXEL_LIMIT)
    except RejectError:
        return ""
    _, numbers = classify_encoding(pixels)
    if numbers is None:
        return _advice_on_colours(data, pixels)
    return _advice_on_numbers(numbers, taxonomy)


def _advice_on_numbers(numbers: UInt8Array, taxonomy: Taxonomy) -> str:
    if _noise(numbers) > _NOISE:
        return (
            "values differ from pixel to pixel, as after JPEG compression or smooth resizing: "
            "export the masks again, as PNG, resized by nearest neighbour"
        )
    present = [int(value) for value in np.unique(numbers)]
    known = [value for value in present if value != VOID]
    if VOID in present and not taxonomy.unknown_values(np.array(known, np.uint8)):
        return "255 is usually void: --void 255"
    step = int(np.gcd.reduce(known)) if len(known) > 1 else 1
    if step > 1 and not taxonomy.unknown_values(np.array(known, np.uint8) // np.uint8(step)):
        return (
            f"values are class ids times {step}: pass a --taxonomy file whose remap divides them, "
            f"remap: {{{step}: 1, {2 * step}: 2, …}}"
        )
    fits = [
        name
        for name in builtin_taxonomies()
        if not load_taxonomy(name).unknown_values(np.array(known, np.uint8))
    ]
    void = " --void 255" if VOID in present else ""
    return f"these values fit --taxonomy {' or '.join(fits)}{void}" if fits else ""


def _advice_on_colours(data: bytes, pixels: UInt8Array) -> str:
    red, green, blue = (int(pixels[..., channel].max()) for channel in range(3))
    if red == green == 0 < blue < VOID:
        return "the class is in the blue channel, as in BGRA: --mask_encoding channel:blue"
    fits = [name for name in builtin_taxonomies() if _has_colours(pixels, name)]
    if fits:
        return f"these colours fit --taxonomy {' or '.join(fits)}"
    colours = len(np.unique(pixels.reshape(-1, 3), axis=0))
    if colours > _MANY:
        return (
            f"{colours} colours in one mask, as in a photograph, an instance mask, or after JPEG "
            "compression or smooth resizing: check that these files are the class masks"
        )
    try:
        png.decode_stored(data, png.NO_PIXEL_LIMIT)
    except RejectError:
        return "write the colours into a --taxonomy file (docs/taxonomies.md)"
    return "if the palette's indices are the class ids: --mask_encoding index"


def advise_pairing(images: Sequence[str], masks: Sequence[str]) -> str:
    """Advice on images and masks that form no pairs: layout patterns that fit their paths."""
    if not images or not masks:
        return ""
    patterns = [_pattern(paths) for paths in (images, masks)]
    return f"names end differently: --images '{patterns[0]}' --masks '{patterns[1]}'"


def _pattern(paths: Sequence[str]) -> str:
    """A layout pattern of the folder, the common ending of all names, and the suffix."""
    stems = [PurePosixPath(path).stem for path in paths]
    ending = stems[0]
    while not all(stem.endswith(ending) for stem in stems):
        ending = ending[1:]
    # Digits that all names happen to end with belong to the id.
    end = ending[ending.index("_") :] if "_" in ending else ""
    first = PurePosixPath(paths[0])
    return f"**/{first.parent.name}/{{id}}{end}{first.suffix}"


def _has_colours(pixels: UInt8Array, name: str) -> bool:
    return not load_taxonomy(name).ids_of_colours(pixels)[1]


def _noise(numbers: UInt8Array) -> float:
    middle = numbers[:, 1:-1]
    isolated = (middle != numbers[:, :-2]) & (middle != numbers[:, 2:])
    return float(isolated.mean()) if isolated.size else 0.0
