"""Draws images beside their masks with Pillow: panels with legends, overlays, error maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from schemas.classes import VOID, Taxonomy, UInt8Array

MARGIN = 10

WRONG_COLOUR, VOID_COLOUR = (214, 40, 57), (92, 112, 160)
"""Colours in an error map."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_LEGEND_WIDTH = 170
"""Of one class, in pixels."""

_TEXT_COLOUR = (30, 30, 30)
_BACKGROUND = (255, 255, 255)


@dataclass(frozen=True)
class PanelRow:
    """One row of a panel; all arrays have the same height and width.

    Attributes:
        caption: text above the row.
        image: RGB, uint8 (height, width, 3).
        masks: one for each further column, either class ids, uint8 (height, width), or an RGB
            picture, uint8 (height, width, 3).
    """

    caption: str
    image: UInt8Array
    masks: Sequence[UInt8Array]


def colourise(mask: UInt8Array, taxonomy: Taxonomy) -> UInt8Array:
    """RGB picture (height, width, 3) of a mask in the class colours."""
    return np.frombuffer(taxonomy.palette, np.uint8).reshape(256, 3)[mask]


def overlay(image: UInt8Array, mask: UInt8Array, taxonomy: Taxonomy) -> UInt8Array:
    """RGB image (height, width, 3) blended half and half with the class colours of its mask."""
    return ((image.astype(np.uint16) + colourise(mask, taxonomy)) // 2).astype(np.uint8)


def error_map(
    truth: UInt8Array, prediction: UInt8Array, image: UInt8Array | None = None
) -> UInt8Array:
    """The image in pale grey, wrong pixels in ``WRONG_COLOUR``, void pixels in ``VOID_COLOUR``.

    Args:
        truth, prediction: class ids, uint8 (height, width).
        image: RGB, uint8 (height, width, 3); white if None.

    Returns:
        RGB, uint8 (height, width, 3).
    """
    grey = np.full(truth.shape, 255, np.uint8)
    if image is not None:
        grey = np.asarray(Image.fromarray(image).convert("L"))
    pale = (112 + grey.astype(np.uint16) * 136 // 255).astype(np.uint8)
    picture = np.repeat(pale[..., None], 3, axis=2)
    picture[prediction != truth] = WRONG_COLOUR
    picture[truth == VOID] = VOID_COLOUR
    return picture


def fitted(text: str, font: Font, width: float) -> str:
    """The text, or its beginning with an ellipsis, no wider than ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def panel(
    rows: Sequence[PanelRow], columns: Sequence[str], taxonomy: Taxonomy, width: int = 320
) -> Image.Image:
    """A sheet with one row per image, input first, then its masks, and a legend of the classes."""
    font = ImageFont.load_default(15)
    cells: list[tuple[str, list[Image.Image]]] = []
    present: set[int] = set()
    for row in rows:
        # Any shape may occur: drawn at most twice as high as wide, at least one pixel high.
        height = min(max(1, round(width * row.image.shape[0] / row.image.shape[1])), 2 * width)
        pictures = [Image.fromarray(row.image).resize((width, height), Image.Resampling.LANCZOS)]
        for mask in row.masks:
            if mask.ndim == 2:
                present.update(int(value) for value in np.unique(mask))
            coloured = Image.fromarray(colourise(mask, taxonomy) if mask.ndim == 2 else mask)
            pictures.append(coloured.resize((width, height), Image.Resampling.NEAREST))
        cells.append((row.caption, pictures))

    labels = [label for label in taxonomy.classes if label.id in present]
    across = len(columns) * (width + MARGIN) + MARGIN
    head = 24
    legend_columns = max(1, across // _LEGEND_WIDTH)
    legend_height = -(-len(labels) // legend_columns) * 24 + 2 * MARGIN
    down = head + sum(pictures[0].height + 30 for _, pictures in cells) + legend_height
    sheet = Image.new("RGB", (across, down), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(columns):
        draw.text((MARGIN + column * (width + MARGIN), 4), title, _TEXT_COLOUR, font)
    top = head
    for caption, pictures in cells:
        draw.text((MARGIN, top), caption, (110, 110, 110), ImageFont.load_default(12))
        top += 18
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (MARGIN + column * (width + MARGIN), top))
        top += pictures[0].height + 12
    for position, label in enumerate(labels):
        row_index, column = divmod(position, legend_columns)
        x, y = MARGIN + column * _LEGEND_WIDTH, top + MARGIN + row_index * 24
        draw.rectangle((x, y, x + 16, y + 16), label.colour, _TEXT_COLOUR)
        name = fitted(label.name, font, _LEGEND_WIDTH - 24 - MARGIN)
        draw.text((x + 24, y), name, _TEXT_COLOUR, font)
    return sheet
