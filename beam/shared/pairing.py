"""Plain functions that pair images with masks by their file paths; they open no file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from runtime.errors import RejectError
from runtime.listing import SourceFile
from schemas.config import SourceConfig
from schemas.raw_layout import Found, RawLayout

_IMAGES = frozenset(
    {".avif", ".bmp", ".exr", ".gif", ".heic", ".jp2", ".jpe", ".jpeg", ".jpg", ".jxl", ".npy"}
    | {".pgm", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
"""Suffixes of files that someone may take for an image or mask."""


@dataclass(frozen=True, slots=True)
class Reject:
    """An input that is left out: its id, its path below the source root, at which stage and why.

    ``sha256`` is the hash of its bytes, if the job has computed it to recognise the reject later;
    ``is_mask`` marks a mask that found no pair.
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
        split, group: as a list of pairs says; None if it does not.
    """

    id: str
    image: SourceFile
    mask: SourceFile | None
    split: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image or mask file that has not been paired yet; ``key`` is that of its pair.

    ``split`` and ``group`` are those of the pair.
    """

    id: str
    key: str
    is_mask: bool
    file: SourceFile
    split: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Skip:
    """A file that is none of a job's business, and why."""

    path: str
    reason: str


def check_size(size: int, config: SourceConfig) -> None:
    """Refuses a file by its listed size, in bytes, before it is read.

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
        any_png: treats every PNG outside of the layout's places as an image.
    """
    if file.skipped:
        return Skip(file.path, file.skipped)
    path = PurePosixPath(file.path)
    found = layout.find(file.path)
    if found is None and not (any_png and is_png(file.path)):
        return Skip(file.path, "outside the layout")
    sample_id = found.id if found else str(path.with_suffix(""))
    is_mask = found is not None and found.is_mask
    if file.error and _is_text(file.path):
        return Reject(sample_id, file.path, "pair", "missing", file.error, is_mask=is_mask)
    if not _is_text(file.path):
        shown, shown_id = ascii(file.path)[1:-1], ascii(sample_id)[1:-1]
        message = "expected a file name in UTF-8"
        return Reject(shown_id, shown, "pair", "name", message, is_mask=is_mask)
    if found and not found.fits:
        return _unfit(file, found, layout)
    if found:
        return Candidate(sample_id, found.key, found.is_mask, file)
    return Candidate(sample_id, sample_id, is_mask=False, file=file)


def _unfit(file: SourceFile, found: Found, layout: RawLayout) -> Reject | Skip:
    """What becomes of a file that lies where images or masks do, but has another suffix."""
    path = PurePosixPath(file.path)
    suffix = path.suffix.strip().lower()
    if suffix not in _IMAGES:
        return Skip(file.path, f"no image ({suffix or 'no suffix'})")
    if suffix != path.suffix.lower():
        message = f"expected a name that ends in {suffix}, found {path.name!r}; rename it"
        return Reject(found.id, file.path, "pair", "name", message, is_mask=found.is_mask)
    kind, wanted = ("mask", layout.masks) if found.is_mask else ("image", layout.images)
    message = f"expected a {kind} like {' or '.join(wanted)}, found {path.suffix}"
    return Reject(found.id, file.path, "pair", "format", message, is_mask=found.is_mask)


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def pair_candidates(candidates: Iterable[Candidate], *, need_mask: bool = True) -> Iterator[Pair | Reject]:
    """Yields the pair that an id's candidates form, or a reject for each file if they form none.

    If an id has several images (or masks), or an image and a mask whose folders differ elsewhere,
    all its files are rejected, because nothing shows which one is meant.
    """
    found = sorted(candidates, key=lambda one: one.file.path)
    images = [one.file for one in found if not one.is_mask]
    masks = [one.file for one in found if one.is_mask]
    if len(images) > 1 or len(masks) > 1 or len({one.key for one in found}) > 1:
        paths = ", ".join(one.file.path for one in found)
        for one in found:
            yield Reject(
                one.id,
                one.file.path,
                "pair",
                "ambiguous",
                f"expected one image and one mask, found {paths}",
                is_mask=one.is_mask,
            )
    elif not images:
        message = "no image beside this mask"
        yield Reject(found[0].id, masks[0].path, "pair", "no_image", message, is_mask=True)
    elif not masks and need_mask:
        yield Reject(found[0].id, images[0].path, "pair", "no_mask", "no mask beside this image")
    else:
        one = found[0]
        yield Pair(one.id, images[0], masks[0] if masks else None, one.split, one.group)
