"""Classifies files by path as images or masks, and pairs them by id; opens no file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from runtime.errors import RejectError
from runtime.listing import SourceFile
from schemas.config import SourceConfig
from schemas.raw_layout import PathMatch, RawLayout

_IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".exr", ".gif", ".heic", ".jp2", ".jpe", ".jpeg", ".jpg", ".jxl", ".npy"}
    | {".pgm", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
"""A file with another suffix is skipped; with one of these, it is read or rejected."""


@dataclass(frozen=True, slots=True)
class Reject:
    """An input that is left out: its id, its path below the source root, at which stage and why.

    Attributes:
        sha256: hash of its bytes, by which a later run recognises it; None if they were not read.
        is_mask: whether it is a mask without an image.
    """

    id: str
    path: str
    stage: str
    code: str
    message: str
    sha256: str | None = None
    is_mask: bool = False


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and, if there is one, its mask, under one id.

    Attributes:
        split, group: as given by a list of pairs, if there is one.
    """

    id: str
    image: SourceFile
    mask: SourceFile | None
    split: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image or mask file before pairing.

    Attributes:
        key: equal for an image and its mask.
        split, group: those of the pair.
    """

    id: str
    key: str
    is_mask: bool
    file: SourceFile
    split: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Skip:
    """A file that a job ignores, and why."""

    path: str
    reason: str


def check_size(size: int, config: SourceConfig) -> None:
    """Rejects a file by its listed size, in bytes, before it is read.

    Raises:
        RejectError: too_large.
    """
    if size > config.max_file_mib << 20:
        raise RejectError(
            "too_large", f"expected at most {config.max_file_mib} MiB, found {size >> 20:,} MiB"
        )


def is_png(path: str) -> bool:
    """True for a name that ends in .png, in upper or lower case."""
    return path.lower().endswith(".png")


def classify_file(  # noqa: PLR0911 - one line for each kind of file
    file: SourceFile, layout: RawLayout, *, any_png: bool = False
) -> Candidate | Reject | Skip:
    """Classifies a file: an image or a mask, a reject, or a file to skip.

    Args:
        any_png: whether every PNG outside of the layout's folders is an image.
    """
    if file.skipped:
        return Skip(file.path, file.skipped)
    found = layout.match(file.path)
    if found is None and not (any_png and is_png(file.path)):
        return Skip(file.path, "outside the layout")
    sample_id = found.id if found else str(PurePosixPath(file.path).with_suffix(""))
    is_mask = found is not None and found.is_mask
    if file.error and _is_text(file.path):
        return Reject(sample_id, file.path, "pair", "missing", file.error, is_mask=is_mask)
    if not _is_text(file.path):
        shown, shown_id = ascii(file.path)[1:-1], ascii(sample_id)[1:-1]
        message = "expected a file name in UTF-8"
        return Reject(shown_id, shown, "pair", "name", message, is_mask=is_mask)
    if found and not found.suffix_fits:
        return _wrong_suffix(file, found, layout)
    if found:
        return Candidate(sample_id, found.key, found.is_mask, file)
    return Candidate(sample_id, sample_id, is_mask=False, file=file)


def _wrong_suffix(file: SourceFile, found: PathMatch, layout: RawLayout) -> Reject | Skip:
    """Classifies a file in a folder of images or masks that has an unexpected suffix."""
    path = PurePosixPath(file.path)
    suffix = path.suffix.strip().lower()
    if suffix not in _IMAGE_SUFFIXES:
        return Skip(file.path, f"no image ({suffix or 'no suffix'})")
    if suffix != path.suffix.lower():
        message = f"expected a name that ends in {suffix}, found {path.name!r}; rename it"
        return Reject(found.id, file.path, "pair", "name", message, is_mask=found.is_mask)
    kind, wanted = ("a mask", layout.masks) if found.is_mask else ("an image", layout.images)
    message = f"expected {kind} like {' or '.join(wanted)}, found {path.suffix}"
    return Reject(found.id, file.path, "pair", "format", message, is_mask=found.is_mask)


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def pair_candidates(
    candidates: Iterable[Candidate], *, need_mask: bool = True
) -> Iterator[Pair | Reject]:
    """Yields the pair that an id's candidates form, or a reject for each file if they form none.

    An id is ambiguous if it has several images or several masks, or if its image and mask have
    different keys. Then all its files are rejected.
    """
    ordered = sorted(candidates, key=lambda candidate: candidate.file.path)
    first = ordered[0]
    images = [candidate.file for candidate in ordered if not candidate.is_mask]
    masks = [candidate.file for candidate in ordered if candidate.is_mask]
    if len(images) > 1 or len(masks) > 1 or len({candidate.key for candidate in ordered}) > 1:
        paths = ", ".join(candidate.file.path for candidate in ordered)
        message = f"expected one image and one mask, found {paths}"
        for one in ordered:
            path, is_mask = one.file.path, one.is_mask
            yield Reject(one.id, path, "pair", "ambiguous", message, is_mask=is_mask)
    elif not images:
        message = "no image beside this mask"
        yield Reject(first.id, masks[0].path, "pair", "no_image", message, is_mask=True)
    elif not masks and need_mask:
        yield Reject(first.id, images[0].path, "pair", "no_mask", "no mask beside this image")
    else:
        yield Pair(first.id, images[0], masks[0] if masks else None, first.split, first.group)
