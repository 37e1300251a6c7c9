"""Turns one image/mask pair into a record: read, check, resize, encode; plain functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from beam.ingest import doubts
from beam.ingest.record_files import RecordFiles, RecordRef
from beam.shared.pairing import Pair, check_size
from images import masks, png
from images.resize import resize_image, resize_nearest
from runtime.errors import RejectError
from runtime.storage import absolute, is_remote, join, modified, read_bytes, sha256
from schemas import software
from schemas.classes import VOID, Taxonomy, UInt8Array, load_taxonomy, with_void
from schemas.config import IngestConfig
from schemas.example import Example, encode
from schemas.layout import SPLIT_NAMES
from schemas.sources import SourceRow
from schemas.stats import PixelStats

DUPLICATE = "duplicate"
"""Code of pairs whose bytes are already in the dataset under another id."""

LEAK = "leak"
"""Code of images that another split nearly shows: near-duplicates and adjacent frames."""

REDUNDANT_CODES = frozenset({DUPLICATE, LEAK})
"""Codes of good files that are left out for another pair; nothing that they show is lost."""

TRANSIENT_CODES = frozenset({"unreadable", "changed"})
"""Codes of errors that may be gone in the next run, although no file has changed."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that determines a dataset's records, apart from the source's files.

    Attributes:
        made_with: the software, as ``schemas.software`` describes it.
    """

    source: str
    config: IngestConfig
    taxonomy: Taxonomy
    made_with: str

    def sha256(self) -> str:
        """Hash of all of it but the source, since the same files may be in another place."""
        parts = (self.config.sha256(), self.taxonomy.sha256, self.made_with)
        return sha256(" ".join(parts).encode())


def recipe_of(source: str, config: IngestConfig) -> Recipe:
    """The recipe of a job's parameters.

    Raises:
        UserError: there is no such taxonomy.
    """
    taxonomy = with_void(load_taxonomy(config.taxonomy), config.void)
    return Recipe(absolute(source), config, taxonomy, software.of_records())


class ProcessedPair(NamedTuple):
    """A pair after its files were read: its row, and its record, or None for a reject."""

    row: SourceRow
    record: RecordRef | None


def row_of(pair: Pair, config: IngestConfig) -> SourceRow:
    """The row of a pair with a mask, before its files are read.

    Its split is that of the list or folder, if they give one and the config does not ignore it.
    """
    if pair.mask is None:
        raise ValueError(f"{pair.id}: a dataset needs masks")
    return SourceRow(
        id=pair.id,
        image_path=pair.image.path,
        mask_path=pair.mask.path,
        image_size=pair.image.size,
        mask_size=pair.mask.size,
        image_modified=pair.image.modified,
        mask_modified=pair.mask.modified,
        split=(pair.split or given_split(pair.id)) if config.given_splits != "ignore" else None,
        group=pair.group,
    )


def given_split(sample_id: str) -> str | None:
    """The split that names a folder of an id, e.g. ``val/``; None if there is none."""
    folders = sample_id.lower().split("/")[:-1]
    return next((SPLIT_NAMES[folder] for folder in folders if folder in SPLIT_NAMES), None)


def reuse_if_unchanged(row: SourceRow, previous: ProcessedPair) -> ProcessedPair | None:
    """An earlier run's result for a new row; None if the files have changed.

    Files with the same path, size and modification time count as unchanged.
    """
    old = previous.row
    if _listing(old) != _listing(row):
        return None
    if previous.record is None:
        # A reject has neither split nor group.
        return previous
    return ProcessedPair(replace(old, split=row.split, group=row.group), previous.record)


def deduplicate(pairs: Iterable[ProcessedPair]) -> list[ProcessedPair]:
    """Of pairs with the same bytes, keeps the first by id and rejects the others."""
    first, *others = sorted(pairs, key=lambda pair: pair.row.id)
    if first.record is None:
        # The others have the same fault, which is the more useful reason.
        return [first, *others]
    copy = RejectError(DUPLICATE, f"same image and mask as {first.row.id}, which is kept")
    return [first, *(ProcessedPair(reject_row(pair.row, copy), None) for pair in others)]


def reject_row(row: SourceRow, error: RejectError) -> SourceRow:
    """The row of a pair that is left out."""
    return replace(
        row,
        split=None,
        group=None,
        shard=None,
        offset=None,
        length=None,
        classes=None,
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


def read_pair(row: SourceRow, source: str, config: IngestConfig) -> tuple[bytes, bytes]:
    """Bytes of image and mask.

    Raises:
        RejectError: too_large, unreadable, or changed since they were listed.
    """
    for path, size in ((row.image_path, row.image_size), (row.mask_path, row.mask_size)):
        with blame_file(path):
            check_size(size, config)
    try:
        image, mask = (read_bytes(join(source, path)) for path in (row.image_path, row.mask_path))
    except OSError as error:
        raise RejectError("unreadable", str(error)) from error
    if _changed(row, source, image, mask, listed=not config.inventory):
        raise RejectError("changed", "the files changed while the job ran; run it again")
    return image, mask


def process_pair(
    row: SourceRow, recipe: Recipe, read: Callable[[], tuple[bytes, bytes]], files: RecordFiles
) -> ProcessedPair:
    """Adds a pair's record to ``files``, or rejects the pair.

    Args:
        read: returns the result of ``read_pair``, or raises as it does.
    """
    try:
        image, mask = read()
        row = replace(row, image_sha256=sha256(image), mask_sha256=sha256(mask))
        row, example, stats = make_record(row, recipe, image, mask)
    except RejectError as error:
        return ProcessedPair(reject_row(row, error), None)
    return ProcessedPair(row, files.add(encode(example), stats))


def stats_of(example: Example, classes: int) -> PixelStats:
    """The pixel statistics of a record."""
    return PixelStats.of(*decode_example(example), classes)


def decode_example(example: Example) -> tuple[UInt8Array, UInt8Array]:
    """Image (height, width, 3) and mask (height, width) of a record."""
    return png.decode_own(example.image), png.decode_own(example.mask)


def classes_of(mask: UInt8Array) -> list[int]:
    """Ids of the classes in a mask, ascending, without void."""
    return [int(value) for value in np.flatnonzero(np.bincount(mask.ravel())) if value != VOID]


def make_record(
    row: SourceRow, recipe: Recipe, image_bytes: bytes, mask_bytes: bytes
) -> tuple[SourceRow, Example, PixelStats]:
    """Checks, resizes and encodes one pair.

    Args:
        image_bytes, mask_bytes: of the row's files.

    Returns:
        The row with size, hashes, classes and doubts; the record; its pixel statistics.

    Raises:
        RejectError: the pair cannot be used in the dataset.
    """
    config = recipe.config
    with blame_file(row.image_path):
        source_image = png.read_image(image_bytes, config)
    with blame_file(row.mask_path):
        source_mask = masks.read_mask_for(mask_bytes, source_image, recipe.taxonomy, config)
    height, width = source_mask.shape
    target = (config.height or height, config.width or width)
    image = resize_image(source_image, *target, config.resize)
    mask = resize_nearest(source_mask, *target)
    example = Example(
        image=png.encode(image),
        mask=png.encode(mask),
        id=row.id,
        source_height=height,
        source_width=width,
        source_sha256=str(row.image_sha256),
    )
    # The score depends on edges, which interpolation blurs.
    sharp = config.resize == "nearest" and mask.size <= source_mask.size
    scored = (image, mask) if sharp else (source_image, source_mask)
    score = doubts.score_pair(*scored, same_file=row.image_sha256 == row.mask_sha256)
    done = replace(
        row,
        source_height=height,
        source_width=width,
        classes=",".join(map(str, classes_of(mask))),
        dhash=difference_hash(image),
        picture=doubts.picture_hash(image),
        doubts=",".join(doubts.doubts_of(score)),
        cells=score.cells,
        agreeing=score.agreeing,
        blue_tilt=score.blue_tilt,
    )
    return done, example, PixelStats.of(image, mask, len(recipe.taxonomy))


def difference_hash(image: UInt8Array) -> str:
    """64-bit difference hash of an RGB image (height, width, 3), as 16 hex digits.

    Each bit says whether brightness decreases from one cell of a grid of 8 rows and 9 columns to
    its right neighbour. The Hamming distance of two hashes measures how different two pictures are.
    """
    # Subsampling is precise enough: a cell covers 1/9 of the width.
    thin = image[:: max(1, image.shape[0] // 96), :: max(1, image.shape[1] // 128)]
    grey = Image.fromarray(thin).convert("L").resize((9, 8), Image.Resampling.BOX)
    cells = np.asarray(grey)
    return np.packbits(cells[:, :-1] > cells[:, 1:]).tobytes().hex()


@contextmanager
def blame_file(path: str) -> Iterator[None]:
    """Adds the path of the file at fault to a RejectError."""
    try:
        yield
    except RejectError as error:
        raise RejectError(error.code, error.message, path) from error


def _changed(row: SourceRow, source: str, image: bytes, mask: bytes, *, listed: bool) -> bool:
    """Whether the files differ from those listed, by size and, on a file system, by time.

    Args:
        listed: whether the job has listed them itself; an inventory's times are rounded.
    """
    if (len(image), len(mask)) != (row.image_size, row.mask_size):
        return True
    if is_remote(source) or not listed:
        # Modification times would cost two more requests.
        return False
    try:
        times = [modified(join(source, path)) for path in (row.image_path, row.mask_path)]
    except OSError:
        return True
    return times != [row.image_modified, row.mask_modified]


def _listing(row: SourceRow) -> tuple[object, ...]:
    return (
        row.image_path,
        row.mask_path,
        row.image_size,
        row.mask_size,
        row.image_modified,
        row.mask_modified,
    )
