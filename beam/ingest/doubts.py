"""Plausibility checks of a decoded pair, or of a whole data set, in plain functions.

Is the image or the mask constant? Is the image a drawing of the mask? Do the mask's edges lie where
the image's do? Are red and blue swapped? All checks use a subsampled grid, so their cost does not
depend on the size of the pictures.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from schemas.classes import VOID, UInt8Array

CONSTANT_IMAGE = "constant_image"
CONSTANT_MASK = "constant_mask"
IMAGE_IS_MASK = "image_is_mask"
EDGES = "edges"

CONSTANT_DEVIATION = 2.0
"""Standard deviation in each channel, of 255, up to which an image shows nothing, e.g. a lens cap.

The 200 real frames have 61 and more, synthetic scenes 36. Darkened to 5% the real ones still have
3.0 and more; at 3% most are constant (1.8 to 2.1). Black with sensor noise of 1.5 has 1.3.
"""

EDGES_AGREE = 0.45
"""Share of a pair's or data set's cells below which image and mask do not belong together.

On the 100 pairs of each drive of the real data (A, B), records of 96x128, right pairs have a share
of 0.92 and 0.87 (lowest pair 0.78, 0.74), masks of the next frame 0.29 and 0.29, mirrored ones 0.18
and 0.22, and masks moved by 4 of 800 pixels 0.13. No right pair is doubted; of the masks of the
next frame, 79% and 86% are (a car that hardly moves has the right mask). No data set drawn from
right pairs is called wrong; of those of 12 pairs shifted by one frame 0.9% and 0.0% are missed, of
40 pairs 0.05% and 0.0%, of 200 none.

The value lies between the next frame's masks and edges drawn with a standard deviation of 2 of 800
pixels (0.66, 0.60). Those of 3 pixels (0.46, 0.43) are called wrong in half of the pairs.
Measured by ``make bench BENCH=doubts``.
"""

LEAST_PAIR_CELLS = 8
"""Cells that a single pair needs for a verdict on its edges."""

LEAST_SET_CELLS = 60
"""Cells that a data set needs for a verdict on its edges: about four street scenes."""

SWAPPED_TILT = -8.0
"""Mean ``blue_tilt`` of a data set below which its channels are swapped.

Swapping red and blue negates the tilt. The real pairs have 26.2 (A, 21.4 to 31.6) and 23.2 (B,
16.4 to 29.9), synthetic scenes of 800x600 54.2 (34.5 and more), those of 160x120 29.6 (from -14.9).
Of 5,000 sets each of 5, 12, 20, 40 or 200 pairs, no right one was called swapped and no swapped one
missed, but for scenes of 160x120: 1.9% of 5 pairs and 0.1% of 12 were missed. A sunset, a street
lit by lamps or a room may have a negative tilt, and grey images have none: warn, do not stop.
"""

LEAST_SET_PAIRS = 5
"""Pairs that a data set needs for a verdict on its channels."""

_THIN_PIXELS = 128 * 128
_CELL = 24
_LEAST_EDGES = 6
_MOST_EDGES = 2048
_GRID = 32

# By the logarithm of its contrast, so that a few strong edges do not outweigh all others. Sums of
# whole numbers are the same on every machine.
_WEIGHT = np.rint(64 * np.log1p(np.arange(256)))


@dataclass(frozen=True, slots=True)
class PairScore:
    """Results of the checks of one pair.

    Attributes:
        cells: number of parts of the picture in which the mask has enough edges to judge.
        agreeing: number of cells whose edges fit better where they are than moved by a pixel.
        blue_tilt: mean of blue minus red in the upper third of the image, minus the same below, in
            steps of 255; a multiple of 1/64.
    """

    constant_image: bool
    constant_mask: bool
    image_is_mask: bool
    cells: int
    agreeing: int
    blue_tilt: float

    @property
    def agreement(self) -> float:
        """Share of the cells that agree, 0 to 1; NaN if there are none."""
        return self.agreeing / self.cells if self.cells else math.nan


@dataclass(frozen=True, slots=True)
class DoubtTotal:
    """Number of pairs of a data set, and sums over their scores; exact, in any order."""

    pairs: int = 0
    cells: int = 0
    agreeing: int = 0
    blue_tilt: float = 0.0

    @classmethod
    def of(cls, scores: Iterable[PairScore]) -> DoubtTotal:
        """The sums over some scores."""
        return sum((cls(1, one.cells, one.agreeing, one.blue_tilt) for one in scores), cls())

    def __add__(self, other: DoubtTotal) -> DoubtTotal:
        return DoubtTotal(
            self.pairs + other.pairs,
            self.cells + other.cells,
            self.agreeing + other.agreeing,
            self.blue_tilt + other.blue_tilt,
        )

    @property
    def agreement(self) -> float:
        """Share of all cells that agree, 0 to 1; NaN if there are none."""
        return self.agreeing / self.cells if self.cells else math.nan

    @property
    def mean_tilt(self) -> float:
        """Mean ``blue_tilt`` of the pairs; NaN if there are none."""
        return self.blue_tilt / self.pairs if self.pairs else math.nan


def score_pair(image: UInt8Array, mask: UInt8Array, *, same_file: bool = False) -> PairScore:
    """Scores one pair.

    Args:
        image: RGB, uint8 (height, width, 3); not interpolated, which blurs edges.
        mask: class ids, uint8 (height, width); void pixels are not judged.
        same_file: whether both were decoded from the same bytes.
    """
    if image.shape != (*mask.shape, 3):
        raise ValueError(f"expected an image of {(*mask.shape, 3)}, found {image.shape}")
    step = math.ceil(math.sqrt(mask.size / _THIN_PIXELS))
    thin_image = np.ascontiguousarray(image[::step, ::step])
    thin_mask = np.ascontiguousarray(mask[::step, ::step])
    constant_mask = is_constant(thin_mask) and is_constant(mask)
    agreeing, cells = (0, 0) if constant_mask else agreeing_cells(thin_image, thin_mask)
    return PairScore(
        constant_image=is_constant(thin_image, CONSTANT_DEVIATION),
        constant_mask=constant_mask,
        image_is_mask=same_file or shows_mask(thin_image, thin_mask),
        cells=cells,
        agreeing=agreeing,
        blue_tilt=blue_tilt(thin_image),
    )


def doubts_of(score: PairScore) -> list[str]:
    """Codes of what is doubtful about a pair."""
    doubts = {
        CONSTANT_IMAGE: score.constant_image,
        CONSTANT_MASK: score.constant_mask,
        IMAGE_IS_MASK: score.image_is_mask,
        EDGES: score.cells >= LEAST_PAIR_CELLS and score.agreement < EDGES_AGREE,
    }
    return [code for code, doubtful in doubts.items() if doubtful]


def edges_disagree(total: DoubtTotal) -> bool:
    """Whether a data set's masks belong to other images."""
    return total.cells >= LEAST_SET_CELLS and total.agreement < EDGES_AGREE


def channels_swapped(total: DoubtTotal) -> bool:
    """Whether red and blue of a data set's images seem to be swapped."""
    return total.pairs >= LEAST_SET_PAIRS and total.mean_tilt < SWAPPED_TILT


def is_constant(pixels: UInt8Array, deviation: float = 0.0) -> bool:
    """Whether all pixels of an image (h, w, 3) or a mask (h, w) are equal, or nearly so.

    Args:
        deviation: standard deviation up to which each channel counts as constant; above 0, it is
            estimated on a grid of 32 by 32 pixels.
    """
    if not deviation:
        return bool((pixels == pixels[0, 0]).all())
    height, width = pixels.shape[:2]
    grid = pixels[:: -(-height // _GRID), :: -(-width // _GRID)]
    values = grid.reshape(grid.shape[0] * grid.shape[1], -1).T.astype(np.float32)
    return all(float(channel.std()) <= deviation for channel in values)


def shows_mask(image: UInt8Array, mask: UInt8Array) -> bool:
    """Whether an image is a drawing of its mask, with one colour for each class.

    The mask's own file is one, in any encoding. Constant images and masks do not count.

    Args:
        image: RGB, uint8 (height, width, 3).
        mask: class ids or raw values, uint8 (height, width).
    """
    colours = np.zeros((VOID + 1, 3), np.uint8)
    # Every 16th row is enough to recognise a photograph.
    for rows in (slice(0, None, 16), slice(0, None)):
        colours[mask[rows]] = image[rows]
        if not np.array_equal(colours[mask[rows]], image[rows]):
            return False
    return not is_constant(mask) and not is_constant(image)


def agreeing_cells(image: UInt8Array, mask: UInt8Array) -> tuple[int, int]:
    """Counts the cells of a picture in which the edges of image and mask agree.

    In each cell of 24x24 pixels, the image's contrast is summed along the mask's edges, and along
    the same edges moved by one pixel in each of 8 directions. The cell agrees if the unmoved sum is
    the largest. By chance, one of nine cells agrees.

    Args:
        image: RGB, uint8 (height, width, 3); about 128 pixels a side.
        mask: class ids, uint8 (height, width).

    Returns:
        Number of agreeing cells, number of cells with at least 6 edge pixels.
    """
    height, width = mask.shape
    if min(height, width) < 4:
        return 0, 0
    contrast, edges = _contrast(image), _edges(mask)
    positions = np.flatnonzero(edges)
    positions = positions[:: -(-len(positions) // _MOST_EDGES) or 1]
    moves = np.array([row * width + column for row, column in _MOVES])
    weights = _WEIGHT.take(contrast.take(positions + moves[:, None]))
    cell_of_pixel = _cells(height, width)
    cells = int(cell_of_pixel[-1]) + 1
    cell = cell_of_pixel.take(positions)
    judged = np.bincount(cell, minlength=cells) >= _LEAST_EDGES
    sums = np.array([np.bincount(cell, moved, cells) for moved in weights])
    agrees = judged & (sums[0] > sums[1:].max(axis=0))
    return int(agrees.sum()), int(judged.sum())


def blue_tilt(image: UInt8Array) -> float:
    """How much bluer the upper third of an image is than the rest, in steps of 255.

    The mean of blue minus red above, minus the same below. A colour cast of the whole picture
    cancels out. Outdoors by day, the sky is bluer than what lies below it, so the tilt is negative
    if red and blue are swapped.
    """
    upper = len(image) // 3
    if not upper:
        return 0.0
    rows = image.reshape(len(image), -1)
    above, below = (_blue_over_red(part) for part in (rows[:upper], rows[upper:]))
    # 64ths add up exactly.
    return round(64 * (above - below)) / 64


def picture_hash(image: UInt8Array) -> str:
    """Content hash of an image's shape and pixels, 32 hex digits; independent of its encoding."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()[:32]


_MOVES = [(0, 0)] + [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]


def _contrast(image: UInt8Array) -> UInt8Array:
    """Largest difference over the channels to the pixel below and to the right, (2, h, w)."""
    height, width = image.shape[:2]
    rows = image.reshape(height, -1)
    contrast = np.zeros((2, height, width), np.uint8)
    for one, other, into in (
        (rows[1:], rows[:-1], contrast[0, :-1]),
        (rows[:, 3:], rows[:, :-3], contrast[1, :, :-1]),
    ):
        steps = np.maximum(one, other) - np.minimum(one, other)
        np.maximum(steps[:, 0::3], steps[:, 1::3], out=into)
        np.maximum(into, steps[:, 2::3], out=into)
    return contrast


def _edges(mask: UInt8Array) -> npt.NDArray[np.bool_]:
    """Where the class differs from that of the pixel below and to the right, (2, h, w).

    Void has no edges. Neither has the border, where edges cannot be moved.
    """
    edges = np.zeros((2, *mask.shape), np.bool_)
    inner, below, right = mask[1:-2, 1:-2], mask[2:-1, 1:-2], mask[1:-2, 2:-1]
    has_void = bool((mask == VOID).any())
    for other, into in ((below, edges[0, 1:-2, 1:-2]), (right, edges[1, 1:-2, 1:-2])):
        np.not_equal(inner, other, out=into)
        if has_void:
            np.logical_and(into, (inner != VOID) & (other != VOID), out=into)
    return edges


@lru_cache(maxsize=16)
def _cells(height: int, width: int) -> npt.NDArray[np.intp]:
    """Index of each pixel's cell, once for each direction: flat (2 * h * w,)."""
    rows, columns = np.arange(height) // _CELL, np.arange(width) // _CELL
    cells = rows[:, None] * (columns[-1] + 1) + columns
    return np.tile(cells.ravel(), 2)


def _blue_over_red(rows: UInt8Array) -> float:
    """Mean of blue minus red over rows of RGB pixels, (h, 3 * w)."""
    sums = rows.sum(axis=0, dtype=np.uint32)
    blue, red = int(sums[2::3].sum()), int(sums[0::3].sum())
    return (blue - red) / (rows.size // 3)
