"""What a source contains, judged by its listing alone: how much, and whether it has changed."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass

from beam.shared import pairing
from beam.shared.pairing import Candidate, Skip
from beam.shared.source import RawSource
from runtime.errors import UserError
from schemas.raw_layout import builtin_layouts, load_layout

_PACKED = re.compile(r"\.(zip|tar|tar\.\w+|tgz|7z|rar)$", re.IGNORECASE)


@dataclass(frozen=True)
class SourceDigest:
    """What a source contains, judged by its listing alone.

    Attributes:
        images, masks: files in the layout's places.
        other_pngs: PNG files outside of them.
        size: total bytes of the files that matter to a job.
        digest: of path, size and modification time of these files, whatever their order.
    """

    images: int
    masks: int
    other_pngs: int
    size: int
    digest: str


def digest_source(source: RawSource, listing_folder: str = "") -> SourceDigest:
    """Lists a source once, one file at a time; ``into`` as in ``RawSource.entries``."""
    found = {True: 0, False: 0}
    other_pngs = size = total = 0
    for file, one in source.entries(listing_folder=listing_folder):
        text = f"{file.path}\0{file.size}\0{file.modified}"
        if isinstance(one, Candidate):
            if source.pairs:
                # A path does not say to which pair a list assigns it.
                text += f"\0{one.id}\0{one.split}\0{one.group}"
            found[one.is_mask] += 1
        elif isinstance(one, Skip):
            if file.skipped or not pairing.is_png(file.path):
                continue
            other_pngs += 1
        size += file.size
        total += int.from_bytes(hashlib.blake2b(os.fsencode(text), digest_size=16).digest())
    return SourceDigest(found[False], found[True], other_pngs, size, f"{total % 2**128:032x}")


def digest_pairs(source: RawSource, listing_folder: str = "") -> SourceDigest:
    """Lists a source that holds pairs.

    Raises:
        UserError: there is no image, or no mask, in the layout's places; names a layout that fits.
    """
    found = digest_source(source, listing_folder)
    if source.pairs and not (found.images and found.masks):
        raise UserError(
            f"--pairs {source.pairs!r} names no pair whose files are below {source.place!r}: found "
            f"{found.images} images and {found.masks} masks"
        )
    if not found.images or not found.masks:
        raise UserError(
            f"source {source.place!r}{_named(source)} holds no pairs: found {found.images} images "
            f"and {found.masks} masks; expected {source.layout.places}{_hint(source)}"
        )
    return found


def digest_images(source: RawSource, listing_folder: str = "") -> SourceDigest:
    """Lists a source of images to predict, with or without masks.

    Raises:
        UserError: there is no image; or none in the layout's places, but masks of another layout,
            which must not be taken for images.
    """
    found = digest_source(source, listing_folder)
    if source.pairs:
        if not found.images:
            raise UserError(f"--pairs {source.pairs!r} names no image below {source.place!r}")
        return found
    if not found.images and (other := _fitting(source)):
        raise UserError(
            f"source {source.place!r} holds no images in {source.layout.places}, but images and "
            f"masks of layout {other}: pass --layout {other}, or a folder of images alone"
        )
    if not found.images and not found.other_pngs:
        raise UserError(
            f"source {source.place!r}{_named(source)} holds no PNG image{_packed(source)}"
        )
    return found


def _named(source: RawSource) -> str:
    return f", as --inventory {source.inventory!r} says," if source.inventory else ""


def _hint(source: RawSource) -> str:
    if packed := _packed(source):
        return packed
    other = _fitting(source)
    if other:
        return f"; these files fit --layout {other}"
    names = ", ".join(one for one in builtin_layouts() if one != source.layout.name)
    return f"; other layouts are {names}, or name patterns with --images and --masks"


def _packed(source: RawSource) -> str:
    """What to do about archives that a source holds."""
    found = next((one.path for one in source.files() if _PACKED.search(one.path)), "")
    return f"; it holds {found}: pass a .zip or .tar as the source, unpack others" if found else ""


def _fitting(source: RawSource) -> str | None:
    """The built-in layout with most pairs of files in a source, if any has one."""
    others = [load_layout(name) for name in builtin_layouts() if name != source.layout.name]
    seen: dict[str, tuple[set[str], set[str]]] = {one.name: (set(), set()) for one in others}
    for file in source.files():
        if file.skipped or file.error:
            continue
        for one in others:
            found = one.find(file.path)
            if found and found.fits:
                seen[one.name][found.is_mask].add(found.key)
    pairs = {name: len(images & masks) for name, (images, masks) in seen.items()}
    best = max(pairs, key=lambda name: pairs[name])
    return best if pairs[best] else None
