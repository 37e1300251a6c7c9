"""Reads a dataset's images and masks at their original size, from its source files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from images import masks, png
from runtime.errors import RejectError, UserError
from runtime.parquet import read_table
from runtime.storage import join, read_bytes, sha256
from schemas.classes import UInt8Array
from schemas.layout import SOURCES
from schemas.manifest import Manifest


class Frame(NamedTuple):
    """An image, RGB uint8 (height, width, 3), and its class ids in the dataset, (height, width)."""

    image: UInt8Array
    truth: UInt8Array


class FramesMissingError(UserError):
    """The source files of a dataset are missing or have changed."""


def frames(folder: str, manifest: Manifest, split: str) -> Iterator[Frame]:
    """Yields the images of a split as they were before resizing, ordered by id.

    Args:
        folder: folder or URI of the published dataset.

    Raises:
        FramesMissingError: a file is missing, unreadable, or has changed since the ingest.
        UnavailableError: the store does not answer.
    """
    names = ["id", "shard", "image_path", "mask_path", "image_sha256", "mask_sha256"]
    rows = read_table(join(folder, SOURCES), columns=names, filters=[("split", "==", split)])
    for row in rows.filter(rows["shard"].is_valid()).sort_by("id").to_pylist():
        image_bytes = _unchanged(manifest, row["image_path"], row["image_sha256"])
        mask_bytes = _unchanged(manifest, row["mask_path"], row["mask_sha256"])
        try:
            image = png.read_image(image_bytes, manifest.config)
            truth = masks.read_mask_for(mask_bytes, image, manifest.taxonomy, manifest.config)
        except RejectError as error:
            # An earlier version of the project may have accepted it.
            raise FramesMissingError(f"{row['id']}: {error.message}") from error
        yield Frame(image, truth)


def _unchanged(manifest: Manifest, path: str, digest: str) -> bytes:
    place = join(manifest.source, path)
    try:
        data = read_bytes(place)
    except OSError as error:
        raise FramesMissingError(f"{place} cannot be read ({error.strerror or error})") from error
    if sha256(data) != digest:
        raise FramesMissingError(f"{place} has changed since the dataset was made of it")
    return data
