"""What a source contains, judged by its listing alone: how much, and whether it has changed."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

from beam import pairing
from beam.pairing import Candidate, Skip
from schemas import listing
from schemas.errors import UserError
from schemas.raw_layout import RawLayout, builtin_layouts, load_layout


@dataclass(frozen=True)
class Survey:
    """What a source contains, judged by its listing alone.

    Attributes:
        images, masks: files in the layout's places.
        loose_pngs: PNG files outside of them.
        size: total bytes of the files that matter to a job.
        digest: of path, size and modification time of these files, whatever their order.
    """

    images: int
    masks: int
    loose_pngs: int
    size: int
    digest: str


def survey(source: str, layout: RawLayout) -> Survey:
    """Lists a source once, one file at a time."""
    found = {True: 0, False: 0}
    loose = size = total = 0
    for file in listing.walk_all(source):
        one = pairing.candidate(file, layout)
        if isinstance(one, Candidate):
            found[one.is_mask] += 1
        elif isinstance(one, Skip):
            if file.skipped or not pairing.is_png(file.path):
                continue
            loose += 1
        size += file.size
        text = f"{file.path}\0{file.size}\0{file.modified}"
        total += int.from_bytes(hashlib.blake2b(os.fsencode(text), digest_size=16).digest())
    return Survey(found[False], found[True], loose, size, f"{total % 2**128:032x}")


def survey_pairs(source: str, layout: RawLayout) -> Survey:
    """Lists a source that holds pairs.

    Raises:
        UserError: there is no image, or no mask, in the layout's places; names a layout that fits.
    """
    found = survey(source, layout)
    if not found.images or not found.masks:
        raise UserError(
            f"source {source!r} holds no pairs: found {found.images} images and {found.masks} "
            f"masks; expected {layout.places}{_hint(source, layout)}"
        )
    return found


def survey_images(source: str, layout: RawLayout) -> Survey:
    """Lists a source of images to predict, with or without masks.

    Raises:
        UserError: there is no image; or none in the layout's places, but masks of another layout,
            which must not be taken for images.
    """
    found = survey(source, layout)
    if not found.images and (other := _fitting(source, layout)):
        raise UserError(
            f"source {source!r} holds no images in {layout.places}, but images and masks of layout "
            f"{other}: pass --layout {other}, or a folder of images alone"
        )
    if not found.images and not found.loose_pngs:
        raise UserError(f"source {source!r} holds no PNG image")
    return found


def _hint(source: str, layout: RawLayout) -> str:
    other = _fitting(source, layout)
    if other:
        return f"; these files fit --layout {other}"
    names = ", ".join(one for one in builtin_layouts() if one != layout.name)
    return f"; other layouts are {names}, or name patterns with --images and --masks"


def _fitting(source: str, layout: RawLayout) -> str | None:
    """The built-in layout with most pairs of files in a source, if any has one."""
    others = [load_layout(name) for name in builtin_layouts() if name != layout.name]
    seen: dict[str, tuple[set[str], set[str]]] = {one.name: (set(), set()) for one in others}
    for file in listing.walk(source):
        for one in others:
            found = one.find(file.path)
            if found and found.fits:
                seen[one.name][found.is_mask].add(found.key)
    pairs = {name: len(images & masks) for name, (images, masks) in seen.items()}
    best = max(pairs, key=lambda name: pairs[name])
    return best if pairs[best] else None
