"""Plain functions that pair images with masks by their file paths; they open no file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from schemas.listing import SourceFile

IMAGE_FOLDERS = frozenset({"CameraRGB"})
MASK_FOLDERS = frozenset({"CameraSeg", "CameraMask"})

_CAMERA_FOLDERS = IMAGE_FOLDERS | MASK_FOLDERS
_OTHER_IMAGES = frozenset({".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".npy"})


@dataclass(frozen=True, slots=True)
class Reject:
    """An input that is left out: its id, its path below the source root, at which stage and why.

    ``sha256`` is the hash of its bytes, if the job has computed it to recognise the reject later.
    """

    id: str
    path: str
    stage: str
    code: str
    message: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and, if there is one, its mask, under one id."""

    id: str
    image: SourceFile
    mask: SourceFile | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image or mask file that has not been paired yet."""

    id: str
    is_mask: bool
    file: SourceFile


def is_png(path: str) -> bool:
    """True for a name that ends in .png, in upper or lower case."""
    return path.lower().endswith(".png")


def is_mask(path: str) -> bool:
    """True if the nearest camera folder above a file holds masks."""
    folders = [one for one in PurePosixPath(path).parts[:-1] if one in _CAMERA_FOLDERS]
    return bool(folders) and folders[-1] in MASK_FOLDERS


def candidate(file: SourceFile, *, loose: bool = False) -> Candidate | Reject | None:
    """Classifies a file: an image or a mask, a reject (e.g. another format), or None if unrelated.

    The nearest camera folder above the file decides; the id is the path without it and without
    the suffix, so ``dataA/CameraRGB/7.png`` and ``dataA/CameraSeg/7.png`` are both ``dataA/7``.

    Args:
        loose: treats every PNG outside of camera folders as an image.
    """
    path = PurePosixPath(file.path)
    parts = list(path.parts[:-1])
    depth = next((i for i in reversed(range(len(parts))) if parts[i] in _CAMERA_FOLDERS), None)
    if depth is None and not (loose and is_png(file.path)):
        return None
    if depth is not None:
        del parts[depth]
    sample_id = "/".join([*parts, path.stem])
    if not _is_text(file.path):
        shown, shown_id = ascii(file.path)[1:-1], ascii(sample_id)[1:-1]
        return Reject(shown_id, shown, "pair", "name", "expected a file name in UTF-8")
    suffix = path.suffix.lower()
    if suffix in _OTHER_IMAGES:
        message = f"expected a .png file, found {path.suffix}"
        return Reject(sample_id, file.path, "pair", "not_png", message)
    if not is_png(file.path):
        return None
    return Candidate(sample_id, is_mask(file.path), file)


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def pair(candidates: Iterable[Candidate], *, need_mask: bool = True) -> Iterator[Pair | Reject]:
    """Yields the pair that an id's candidates form, or a reject for each file if they form none.

    If an id has several images (or masks), all its files are rejected, because nothing shows which
    one is meant.
    """
    found = sorted(candidates, key=lambda one: one.file.path)
    images = [one.file for one in found if not one.is_mask]
    masks = [one.file for one in found if one.is_mask]
    if len(images) > 1 or len(masks) > 1:
        paths = ", ".join(one.file.path for one in found)
        for one in found:
            yield Reject(
                one.id,
                one.file.path,
                "pair",
                "ambiguous",
                f"expected one image and one mask, found {paths}",
            )
    elif not images:
        yield Reject(found[0].id, masks[0].path, "pair", "no_image", "no image beside this mask")
    elif not masks and need_mask:
        yield Reject(found[0].id, images[0].path, "pair", "no_mask", "no mask beside this image")
    else:
        yield Pair(found[0].id, images[0], masks[0] if masks else None)
