"""Digest of a source's listing: counts, bytes and a hash that shows whether anything changed."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass

from beam.shared import pairing
from beam.shared.pairing import Candidate, Skip
from beam.shared.source import RawSource
from runtime.command_line import log
from runtime.errors import UserError
from schemas.raw_layout import builtin_layouts, load_layout

_ARCHIVE = re.compile(r"\.(zip|tar|tar\.\w+|tgz|7z|rar)$", re.IGNORECASE)


@dataclass(frozen=True)
class SourceDigest:
    """What a source's listing says about it.

    Attributes:
        images, masks: number of files that match the layout.
        other_pngs, other_jpegs: number of PNG and JPEG files that do not.
        size: total bytes of all files but those that are skipped.
        digest: hash of the path, size and modification time of these files, in any order.
    """

    images: int
    masks: int
    other_pngs: int
    other_jpegs: int
    size: int
    digest: str


def digest_source(source: RawSource, listing_folder: str = "") -> SourceDigest:
    """Lists a source once, one file at a time; ``listing_folder`` as in ``RawSource.entries``."""
    images = masks = other_pngs = other_jpegs = size = total = 0
    for file, entry in source.entries(listing_folder=listing_folder):
        text = f"{file.path}\0{file.size}\0{file.modified}"
        if isinstance(entry, Candidate):
            if source.pairs:
                # A list may assign the same path to another pair.
                text += f"\0{entry.id}\0{entry.split}\0{entry.group}"
            masks += entry.is_mask
            images += not entry.is_mask
        elif isinstance(entry, Skip):
            if file.skipped or not pairing.is_png(file.path):
                other_jpegs += not file.skipped and _is_jpeg(file.path)
                continue
            other_pngs += 1
        size += file.size
        # A sum does not depend on the order of the files.
        total += int.from_bytes(hashlib.blake2b(os.fsencode(text), digest_size=16).digest())
    digest = f"{total % 2**128:032x}"
    return SourceDigest(images, masks, other_pngs, other_jpegs, size, digest)


def digest_pairs(source: RawSource, listing_folder: str = "") -> SourceDigest:
    """Lists a source of image/mask pairs.

    Raises:
        UserError: no image or no mask matches the layout; names a layout that fits.
    """
    digest = digest_source(source, listing_folder)
    if digest.images and digest.masks:
        return digest
    found = f"found {digest.images} images and {digest.masks} masks"
    if source.pairs:
        files = f"files are below {source.place!r}"
        raise UserError(f"--pairs {source.pairs!r} names no pair whose {files}: {found}")
    raise UserError(
        f"source {source.place!r}{_by_inventory(source)} holds no pairs: {found}; expected "
        f"{source.layout.places}{_layout_hint(source)}"
    )


def digest_images(source: RawSource, listing_folder: str = "") -> SourceDigest:
    """Lists a source of images to predict, with or without masks.

    Raises:
        UserError: there is no image; or no image matches the layout, but the files match another
            layout, whose masks must not be taken for images.
    """
    digest = digest_source(source, listing_folder)
    if digest.images:
        return digest
    if source.pairs:
        raise UserError(f"--pairs {source.pairs!r} names no image below {source.place!r}")
    if other := _best_layout(source):
        raise UserError(
            f"source {source.place!r} holds no images in {source.layout.places}, but images and "
            f"masks of layout {other}: pass --layout {other}, or a folder of images alone"
        )
    jpegs = (
        f"{digest.other_jpegs:,} JPEGs, which are none outside of the layout "
        f"({source.layout.places}); put them into such a folder"
    )
    if not digest.other_pngs:
        but = f", but {jpegs}" if digest.other_jpegs else ""
        raise UserError(
            f"source {source.place!r}{_by_inventory(source)} holds no PNG image{but}"
            f"{_archive_hint(source)}"
        )
    if digest.other_jpegs:
        log(f"warning: the images of {source.place!r} are its PNGs; it also holds {jpegs}")
    return digest


def _is_jpeg(path: str) -> bool:
    return path.lower().endswith((".jpg", ".jpeg"))


def _by_inventory(source: RawSource) -> str:
    return f", as --inventory {source.inventory!r} says," if source.inventory else ""


def _layout_hint(source: RawSource) -> str:
    if hint := _archive_hint(source):
        return hint
    if other := _best_layout(source):
        return f"; these files fit --layout {other}"
    names = ", ".join(name for name in builtin_layouts() if name != source.layout.name)
    return f"; other layouts are {names}, or name patterns with --images and --masks"


def _archive_hint(source: RawSource) -> str:
    """What to do with an archive in a source; empty if there is none."""
    path = next((file.path for file in source.files() if _ARCHIVE.search(file.path)), "")
    if not path:
        return ""
    if source.archives:
        return f"; it holds {path}: of archives, only .zip and .tar are opened; unpack others"
    return f"; it holds {path}: pass --archives=open for .zip and .tar, unpack others"


def _best_layout(source: RawSource) -> str | None:
    """The other built-in layout that finds most pairs in a source; None if none finds any."""
    layouts = [load_layout(name) for name in builtin_layouts() if name != source.layout.name]
    keys: dict[str, tuple[set[str], set[str]]] = {one.name: (set(), set()) for one in layouts}
    for file in source.files():
        if file.skipped or file.error:
            continue
        for layout in layouts:
            found = layout.match(file.path)
            if found and found.suffix_fits:
                keys[layout.name][found.is_mask].add(found.key)
    pairs = {name: len(images & masks) for name, (images, masks) in keys.items()}
    best = max(pairs, key=lambda name: pairs[name])
    return best if pairs[best] else None
