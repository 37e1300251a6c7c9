"""Incremental inference: images and rejects of the published run, whose rows are reused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from beam.infer import runs
from beam.infer.table_parts import read_published
from beam.shared.pairing import Reject
from schemas.published import files_of

PreviousImage = tuple[bytes, int]
"""An image's identity, as ``identity_of`` computes it, and the bytes of its mask. A plain tuple
takes a fifth of a class's bytes in Beam's shuffle."""

_IDENTITY = ("source_uri", "split", "image_sha256", "truth_sha256")


@dataclass(frozen=True)
class PreviousRun:
    """A published run, if a new run would write the same rows.

    Attributes:
        masks, class_stats, rejects: its files, in the order of their parts.
        images_root: folder to which the paths of rejects are relative.
        retry_rejects: whether to read rejects again, and images whose truth was rejected.
    """

    masks: tuple[str, ...]
    class_stats: tuple[str, ...]
    rejects: tuple[str, ...]
    images_root: str
    retry_rejects: bool

    def results(self, file: str) -> Iterator[tuple[str, PreviousImage | Reject]]:
        """The images in a file of ``masks``, or the rejects in one of ``rejects``, by image id.

        Raises:
            UnavailableError: the file is gone.
        """
        if file in self.masks:
            yield from _images(file)
        else:
            yield from _rejects(file, self.images_root)

    def results_of_image(self, found: Iterable[PreviousImage | Reject]) -> PreviousResults:
        """What may be reused of ``results`` with one image id."""
        images, rejects = list[PreviousImage](), list[Reject]()
        for one in found:
            if isinstance(one, Reject):
                rejects.append(one)
            else:
                images.append(one)
        if not self.retry_rejects:
            return PreviousResults(tuple(images), tuple(rejects))
        if any(reject.stage == runs.TRUTH_STAGE for reject in rejects):
            return NO_RESULTS
        return PreviousResults(tuple(images))


class PreviousResults(NamedTuple):
    """What the published run has of one image id."""

    images: tuple[PreviousImage, ...] = ()
    rejects: tuple[Reject, ...] = ()

    def find_mask_size(
        self, uri: str, split: str | None, image_sha256: str, truth_sha256: str | None
    ) -> int | None:
        """Bytes of the mask of the same image, URI, split and truth; None if there is none."""
        identity = identity_of(uri, split, image_sha256, truth_sha256)
        return next((size for known, size in self.images if known == identity), None)

    def find_reject(self, path: str, sha256: str | None) -> Reject | None:
        """The reject of the same image with the same bytes, or None."""
        for reject in self.rejects:
            # A list of pairs may name one file as an image and as its mask.
            is_image = reject.path == path and reject.stage != runs.TRUTH_STAGE
            if is_image and sha256 and reject.sha256 == sha256:
                return reject
        return None

    def find_mask_reject(self, path: str, sha256: str | None) -> Reject | None:
        """The reject of an image's mask with the same bytes, which may have moved, or None."""
        for reject in self.rejects:
            if reject.stage == runs.TRUTH_STAGE and sha256 and reject.sha256 == sha256:
                return replace(reject, path=path)
        return None


NO_RESULTS = PreviousResults()


def identity_of(uri: str, split: str | None, image_sha256: str, truth_sha256: str | None) -> bytes:
    """Hash of what must be equal, beside the image's id, for its rows to be reused."""
    text = "\0".join((image_sha256, truth_sha256 or "", split or "", uri))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def find_previous(
    root: str, partition: str, recipe: str, *, images_root: str, retry_rejects: bool
) -> PreviousRun | None:
    """The published run of a partition, if it is intact and a new run would write the same rows.

    Args:
        recipe: hash of everything that determines an image's rows, except its bytes.
        retry_rejects: whether to omit the rejects, and the images whose truth was rejected.
    """
    if runs.recipe_of(root, partition) != recipe or not runs.is_intact(root, partition):
        return None
    masks, class_stats, rejects = (
        tuple(files_of(root, table, partition)) for table in ("masks", "class_stats", "rejects")
    )
    return PreviousRun(masks, class_stats, rejects, images_root, retry_rejects)


def _images(file: str) -> Iterator[tuple[str, PreviousImage]]:
    columns = ["image_id", "mask_size", *_IDENTITY]
    rows = read_published(file, columns).to_pydict()
    for image_id, size, *identity in zip(*(rows[name] for name in columns), strict=True):
        yield image_id, (identity_of(*identity), size)


def _rejects(file: str, images_root: str) -> Iterator[tuple[str, Reject]]:
    names = ["image_id", "source_uri", "stage", "code", "message", "source_sha256"]
    for batch in read_published(file, names).to_batches(10_000):
        for row in batch.to_pylist():
            # The network may succeed the next time, e.g. if there is more memory.
            if row["stage"] == runs.PREDICT_STAGE:
                continue
            path = row.pop("source_uri").removeprefix(f"{images_root}/")
            image_id, *rest = row.values()
            yield image_id, Reject(image_id, path, *rest)
