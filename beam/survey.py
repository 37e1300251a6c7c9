"""What a source contains, judged by its listing alone: how much, and whether it has changed."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

from beam import pairing
from beam.pairing import Candidate
from schemas import listing
from schemas.errors import UserError


@dataclass(frozen=True)
class Survey:
    """What a source contains, judged by its listing alone.

    Attributes:
        images, masks: PNG files in camera folders.
        loose_pngs: PNG files outside of them.
        size: total bytes of the files that matter to a job.
        digest: of path, size and modification time of these files, whatever their order.
    """

    images: int
    masks: int
    loose_pngs: int
    size: int
    digest: str


def survey(source: str) -> Survey:
    """Lists a source once, one file at a time."""
    found = {True: 0, False: 0}
    loose = size = total = 0
    for file in listing.walk(source):
        one = pairing.candidate(file)
        if isinstance(one, Candidate):
            found[one.is_mask] += 1
        elif one is None:
            if not pairing.is_png(file.path):
                continue
            loose += 1
        size += file.size
        text = f"{file.path}\0{file.size}\0{file.modified}"
        total += int.from_bytes(hashlib.blake2b(os.fsencode(text), digest_size=16).digest())
    return Survey(found[False], found[True], loose, size, f"{total % 2**128:032x}")


def survey_pairs(source: str) -> Survey:
    """Lists a source that holds pairs.

    Raises:
        UserError: there is no image, or no mask, in any camera folder.
    """
    found = survey(source)
    if not found.images or not found.masks:
        folders = " or ".join(sorted(pairing.MASK_FOLDERS))
        raise UserError(
            f"source {source!r} holds no pairs: found {found.images} PNG images and {found.masks} "
            f"masks; expected a CameraRGB folder beside a {folders} folder, at any depth"
        )
    return found
