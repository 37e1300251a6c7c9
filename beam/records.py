"""Plain functions that turn one pair into a record: read, check, resize, encode."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from beam import doubts, masks, png, splitting
from beam.pairing import Pair
from schemas.classes import Taxonomy, UInt8Array, load_taxonomy, with_void
from schemas.config import IngestConfig, SourceConfig
from schemas.errors import RejectError
from schemas.example import Example
from schemas.sample import Sample
from schemas.sources import SourceRow
from schemas.storage import absolute, is_remote, join, modified, read_bytes

DUPLICATE = "duplicate"
"""Code of rejects that lose no data: their pixels are in the dataset under another id."""

TRANSIENT = frozenset({"unreadable", "changed"})
"""Codes of errors that may not occur again in the next run, even if no file has changed."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that determines the content of a record."""

    source: str
    config: IngestConfig
    taxonomy: Taxonomy


def recipe_of(source: str, config: IngestConfig) -> Recipe:
    """The recipe that a job's parameters name.

    Raises:
        UserError: there is no such taxonomy.
    """
    taxonomy = with_void(load_taxonomy(config.taxonomy), config.void)
    return Recipe(absolute(source), config, taxonomy)


def identify(pair: Pair, recipe: Recipe, known: SourceRow | None) -> SourceRow:
    """The row of a pair, with its split and the hashes of its files.

    A known row from an earlier run is returned unchanged if the paths, sizes, modification times
    and split are still the same, so the files are not hashed again; its other fields are used if
    its shard is reused. A file that cannot be read makes the row a reject.
    """
    if pair.mask is None:
        raise ValueError(f"{pair.id}: a dataset needs masks")
    row = SourceRow(
        id=pair.id,
        image_path=pair.image.path,
        mask_path=pair.mask.path,
        image_size=pair.image.size,
        mask_size=pair.mask.size,
        image_modified=pair.image.modified,
        mask_modified=pair.mask.modified,
        split=pair.split or splitting.split_of(pair.id, recipe.config, pair.group),
    )
    if known is not None and known.image_sha256 and _listing(known) == _listing(row):
        return known
    try:
        image, mask = read_pair(row, recipe.source)
    except RejectError as error:
        return reject_row(row, error)
    return replace(row, image_sha256=_sha256(image), mask_sha256=_sha256(mask))


def deduplicate(rows: Iterable[SourceRow]) -> list[SourceRow]:
    """Of the rows of pairs with the same bytes, keeps the first by id and rejects the others."""
    first, *others = sorted(rows, key=lambda row: row.id)
    if first.reject_code == DUPLICATE:
        first = replace(first, reject_path=None, reject_code=None, reject_message=None)
    copy = RejectError(DUPLICATE, f"same image and mask as {first.id}, which is kept")
    return [first, *(reject_row(row, copy) for row in others)]


def settle_duplicates(rejects: Iterable[SourceRow]) -> list[SourceRow]:
    """Settles all rejects after the pairs are checked: a copy of a bad pair takes its reason."""
    ended = list(rejects)
    bad = {_hashes(row): row for row in ended if row.reject_code != DUPLICATE}
    settled = []
    for row in ended:
        first = bad.get(_hashes(row))
        if row.reject_code != DUPLICATE or first is None:
            settled.append(row)
        else:
            reason = f"same bytes as {first.id}: {first.reject_message}"
            settled.append(reject_row(row, RejectError(str(first.reject_code), reason)))
    return settled


def reject_row(row: SourceRow, error: RejectError) -> SourceRow:
    """The row of a pair that is left out."""
    return replace(
        row,
        shard=None,
        dhash=None,
        picture=None,
        doubts=None,
        cells=None,
        agreeing=None,
        blue_tilt=None,
        reject_path=error.path or row.image_path,
        reject_code=error.code,
        reject_message=error.message,
    )


def read_pair(row: SourceRow, source: str) -> tuple[bytes, bytes]:
    """Bytes of image and mask.

    Raises:
        RejectError: unreadable.
    """
    try:
        return read_bytes(join(source, row.image_path)), read_bytes(join(source, row.mask_path))
    except OSError as error:
        raise RejectError("unreadable", str(error)) from error


def make_record(
    row: SourceRow, recipe: Recipe, read: Callable[[], tuple[bytes, bytes]] | None = None
) -> tuple[SourceRow, Sample, Example]:
    """Reads, checks, resizes and encodes one pair.

    Args:
        read: returns the result of ``read_pair``, if reading has already begun.

    Returns:
        The row with size, hashes and doubts, the checked sample, the record.

    Raises:
        RejectError: the pair cannot be used in the dataset; says why.
    """
    config = recipe.config
    image_bytes, mask_bytes = read() if read else read_pair(row, recipe.source)
    if _changed(row, recipe.source, image_bytes, mask_bytes):
        raise RejectError("changed", "the files changed while the job ran; run it again")
    with _blame(row.image_path):
        image = read_image(image_bytes, config)
    with _blame(row.mask_path):
        mask = masks.read_mask_of(mask_bytes, image, recipe.taxonomy, config)
        height, width = mask.shape
    target = (config.height or height, config.width or width)
    sample = Sample(
        id=row.id,
        image=png.resize_image(image, *target, config.resize),
        mask=png.resize_nearest(mask, *target),
    )
    example = Example(
        image=png.encode(sample.image),
        mask=png.encode(sample.mask),
        id=row.id,
        source_height=height,
        source_width=width,
        source_sha256=str(row.image_sha256),
    )
    # Interpolation blurs edges, on which the score depends.
    sharp = config.resize == "nearest" and sample.mask.size <= mask.size
    seen = (sample.image, sample.mask) if sharp else (image, mask)
    score = doubts.score_pair(*seen, same_file=row.image_sha256 == row.mask_sha256)
    done = replace(
        row,
        source_height=height,
        source_width=width,
        dhash=difference_hash(sample.image),
        picture=doubts.picture_hash(sample.image),
        doubts=",".join(doubts.doubts_of(score)),
        cells=score.cells,
        agreeing=score.agreeing,
        blue_tilt=score.blue_tilt,
    )
    return done, sample, example


def read_image(data: bytes, config: SourceConfig) -> UInt8Array:
    """RGB image of a file's bytes, uint8 (height, width, 3).

    Raises:
        RejectError: it cannot be decoded.
    """
    image = png.decode_image(data, config.max_pixels)
    return np.ascontiguousarray(image[..., ::-1]) if config.image_channels == "bgr" else image


def difference_hash(image: UInt8Array) -> str:
    """64-bit difference hash of an RGB image (height, width, 3), as 16 hex digits.

    Each bit says whether brightness decreases from one cell of a grid of 8 rows and 9 columns to
    its right neighbour. The Hamming distance between two hashes measures how different two
    pictures are.
    """
    # Large images are subsampled first: each cell covers 1/9 of the width.
    thin = image[:: max(1, image.shape[0] // 96), :: max(1, image.shape[1] // 128)]
    grey = Image.fromarray(thin).convert("L").resize((9, 8), Image.Resampling.BOX)
    cells = np.asarray(grey)
    return np.packbits(cells[:, :-1] > cells[:, 1:]).tobytes().hex()


@contextmanager
def _blame(path: str) -> Iterator[None]:
    """Adds the path of the file at fault to a RejectError."""
    try:
        yield
    except RejectError as error:
        raise RejectError(error.code, error.message, path) from error


def _changed(row: SourceRow, source: str, image: bytes, mask: bytes) -> bool:
    """Whether the files differ from those hashed: by size and time, or on a store by hash."""
    if (len(image), len(mask)) != (row.image_size, row.mask_size):
        return True
    if is_remote(source):
        # Modification times would cost two more requests.
        return (_sha256(image), _sha256(mask)) != _hashes(row)
    try:
        times = [modified(join(source, path)) for path in (row.image_path, row.mask_path)]
    except OSError:
        return True
    return times != [row.image_modified, row.mask_modified]


def _hashes(row: SourceRow) -> tuple[str | None, str | None]:
    return row.image_sha256, row.mask_sha256


def _listing(row: SourceRow) -> tuple[object, ...]:
    return (
        row.image_path,
        row.mask_path,
        row.image_size,
        row.mask_size,
        row.image_modified,
        row.mask_modified,
        row.split,
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
