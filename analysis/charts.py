"""Histogram and confusion matrix as inline SVG; the page's CSS variables give the colours."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt

_FONT = 'font-size="11"'

_MIN_SHARE = 0.005
"""Smallest share at which a cell of a confusion matrix is coloured and labelled."""

_MAX_LABEL = 210
"""Width of a class's name beside a confusion matrix, in pixels; longer ones are cut off."""


def histogram(values: npt.NDArray[np.float64], name: str, bins: int = 24) -> str:
    """A bar chart of ``values``, which are shares from 0 to 1; NaN is left out."""
    values = values[~np.isnan(values)]
    low = min(0.95, np.floor(values.min(initial=1) * 20) / 20)
    counts, edges = np.histogram(values, bins, (low, max(1.0, values.max(initial=1))))
    width, height, left, bottom = 520, 190, 6, 24
    step = (width - 2 * left) / bins
    tallest = max(1, int(counts.max()))
    parts = []
    for index, count in enumerate(counts.tolist()):
        bar = (height - bottom - 22) * count / tallest
        title = f"{edges[index]:.3f} to {edges[index + 1]:.3f}: {count:,} images"
        parts.append(
            f'<rect class="bar" x="{left + index * step + 1:.1f}" y="{height - bottom - bar:.1f}" '
            f'width="{step - 2:.1f}" height="{bar:.1f}"><title>{title}</title></rect>'
        )
    base = height - bottom
    parts.append(f'<path class="axis" d="M{left} {base + 0.5}H{width - left}"/>')
    for share in np.linspace(0, 1, 6):
        x = left + share * (width - 2 * left)
        anchor = "start" if share == 0 else "end" if share == 1 else "middle"
        text = f"{edges[0] + share * (edges[-1] - edges[0]):.2f}"
        parts.append(
            f'<text {_FONT} x="{x:.1f}" y="{height - 8}" text-anchor="{anchor}">{text}</text>'
        )
    peak = int(np.argmax(counts))
    x = left + (peak + 0.5) * step
    anchor = "end" if peak > bins * 0.8 else "start" if peak < bins * 0.2 else "middle"
    parts.append(
        f'<text {_FONT} x="{x:.1f}" y="14" text-anchor="{anchor}">{tallest:,} images</text>'
    )
    return _svg(width, height, f"Histogram of {name} over {len(values):,} images", parts)


def heatmap(shares: npt.NDArray[np.float64], names: Sequence[str]) -> str:
    """A confusion matrix whose rows are true classes, as shares of a row's pixels from 0 to 1."""
    labels = [_cut(name) for name in names]
    cell, size = 36, 36 * len(names)
    # A name above the matrix rises at 45 degrees from the middle of its column.
    reach = [0.71 * _text_width(label) + 12 for label in labels]
    left = max(100, *(16 + _text_width(label) for label in labels))
    top = max(82, *(round(length) + 12 for length in reach))
    right = max(46, *(round((i + 0.5) * cell + long) - size for i, long in enumerate(reach)))
    parts = []
    for index, name in enumerate(labels):
        middle = (index + 0.5) * cell
        parts.append(
            f'<text {_FONT} x="{left - 8}" y="{top + middle + 4:.1f}" text-anchor="end">'
            f"{escape(name)}</text>"
        )
        x = left + middle + 4
        parts.append(
            f'<text {_FONT} x="{x}" y="{top - 8}" transform="rotate(-45 {x} {top - 8})">'
            f"{escape(name)}</text>"
        )
    for row, column in np.ndindex(shares.shape):
        share = float(shares[row, column])
        x, y = left + column * cell, top + row * cell
        kind = "right" if row == column else "wrong"
        title = f"{share:.2%} of {names[row]} predicted as {names[column]}"
        parts.append(
            f'<g><rect class="cell" x="{x + 0.5}" y="{y + 0.5}" width="{cell - 1}" '
            f'height="{cell - 1}"/>'
        )
        if share >= _MIN_SHARE:
            parts.append(
                f'<rect class="{kind}" x="{x + 0.5}" y="{y + 0.5}" width="{cell - 1}" '
                f'height="{cell - 1}" fill-opacity="{max(0.03, share):.3f}"/>'
            )
            tone = "most" if share >= 0.85 else "much" if share >= 0.6 else "some"
            parts.append(
                f'<text class="{tone}" {_FONT} x="{x + cell / 2}" y="{y + cell / 2 + 4}" '
                f'text-anchor="middle">{share * 100:.0f}</text>'
            )
        parts.append(f"<title>{escape(title)}</title></g>")
    label = "Confusion matrix, per cent of the pixels of each true class"
    width = left + size + right
    style = f' style="min-width:{width}px;max-width:{round(1.16 * width)}px"'
    return _svg(width, top + size + 4, label, parts, style)


def _text_width(text: str) -> int:
    """Width of a label in pixels, estimated; of usual text, hardly ever too small."""
    return sum(12 if unicodedata.east_asian_width(letter) in "WF" else 7 for letter in text)


def _cut(name: str) -> str:
    """The name, or as much of it as ``_MAX_LABEL`` holds."""
    if _text_width(name) <= _MAX_LABEL:
        return name
    while _text_width(name) > _MAX_LABEL - 12:
        name = name[:-1]
    return name + "\N{HORIZONTAL ELLIPSIS}"


def _svg(width: int, height: int, label: str, parts: Sequence[str], style: str = "") -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}"{style}>'
        + "".join(parts)
        + "</svg>"
    )
