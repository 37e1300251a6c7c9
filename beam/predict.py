"""The pictures that a model predicts: how they are read, and the results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from beam import png
from beam.model_uri import ResolvedModel
from beam.pairing import Pair, Reject
from beam.parts import Ref
from beam.previous import Known
from beam.runs import TRUTH_STAGE
from schemas.classes import Taxonomy, UInt8Array
from schemas.errors import RejectError, UserError
from schemas.example import CorruptRecordError, Example, parse, read_records
from schemas.layout import SOURCES
from schemas.manifest import load_manifest
from schemas.parquet import read_table
from schemas.storage import join, local, read_bytes, sha256

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Picture:
    """An image to be predicted.

    Attributes:
        path: of the source PNG, below the source root.
        pixels: RGB at the model's size, uint8 (height, width, 3).
        width, height: size of the image that was read.
        truth: class ids at the size that was read, uint8 (height, width), if known.
        image_sha256, truth_sha256: hashes of the bytes of the source PNG and of its mask, if any.
    """

    image_id: str
    path: str
    source_uri: str
    split: str | None
    width: int
    height: int
    pixels: UInt8Array
    truth: UInt8Array | None
    image_sha256: str
    truth_sha256: str | None = None


class Prediction(NamedTuple):
    """Class id, uint8, and highest probability, float32, of each pixel at the model's size."""

    picture: Picture
    class_id: UInt8Array
    confidence: Float32Array


class Unpredicted(NamedTuple):
    """A picture that the model failed on, with the code and the message of its reject."""

    picture: Picture
    code: str
    message: str


def read_shard(
    dataset: str, split: str, name: str, model: ResolvedModel, known: Known | None = None
) -> Iterator[Picture | Ref | Reject]:
    """Reads the records of one shard; ``width`` and ``height`` are those of the dataset's images.

    Args:
        known: images and rejects of an earlier run that need not be processed again.
    """
    rows = read_table(
        join(dataset, SOURCES), columns=["id", "image_path"], filters=[("shard", "=", name)]
    )
    paths = dict(zip(rows["id"].to_pylist(), rows["image_path"].to_pylist(), strict=True))
    manifest = load_manifest(dataset)
    table = None
    if manifest.taxonomy.mapping_sha256 != model.taxonomy.mapping_sha256 and model.class_table:
        table = np.array(model.class_table, np.uint8)
    for example in _examples(dataset, name):
        path, sha256 = paths[example.id], example.source_sha256
        seen = known and (known.image(example.id, sha256, None) or known.reject(path, sha256))
        if seen:
            yield seen
            continue
        try:
            image = png.decode_image(example.image, max_pixels=1 << 31)
            truth = png.decode_mask(example.mask, max_pixels=1 << 31)
        except RejectError as error:
            yield Reject(example.id, path, "read", error.code, error.message, sha256)
            continue
        yield Picture(
            image_id=example.id,
            path=path,
            source_uri=join(manifest.source, path),
            split=split,
            width=image.shape[1],
            height=image.shape[0],
            pixels=png.resize_image(image, model.height, model.width, model.resize),
            truth=truth if table is None else table[truth],
            image_sha256=sha256,
        )


def _examples(dataset: str, name: str) -> Iterator[Example]:
    """Reads the records of a shard one at a time: it may be larger than a worker's memory."""
    try:
        with local(join(dataset, name)) as path, open(path, "rb") as file:
            yield from map(parse, read_records(file, name))
    except (OSError, CorruptRecordError) as error:
        raise UserError(
            f"dataset {dataset!r}: shard {name} cannot be read ({error}); ingest again to repair it"
        ) from error


def read_pair(
    pair: Pair, source: str, model: ResolvedModel, max_pixels: int, known: Known
) -> Iterator[Picture | Ref | Reject]:
    """Reads the image of a pair, with its truth if there is a usable mask.

    Yields:
        The reject of the mask, if it cannot be used. Then the picture; or the reject of the image;
        or, if neither image nor mask has changed since an earlier run, a reference to their rows.
    """
    uri = join(source, pair.image.path)
    try:
        data = read_bytes(uri)
    except OSError as error:
        yield Reject(pair.id, pair.image.path, "read", "unreadable", str(error))
        return
    image_sha256 = sha256(data)
    if reject := known.reject(pair.image.path, image_sha256):
        yield reject
        return
    mask, truth_sha256 = None, None
    if pair.mask is not None:
        try:
            mask = read_bytes(join(source, pair.mask.path))
            truth_sha256 = sha256(mask)
        except OSError as error:
            yield Reject(pair.id, pair.mask.path, TRUTH_STAGE, "unreadable", str(error))
        if reject := known.reject(pair.mask.path, truth_sha256):
            yield reject
            mask = None
    if ref := known.image(pair.id, image_sha256, truth_sha256):
        yield ref
        return
    try:
        image = png.decode_image(data, max_pixels)
    except RejectError as error:
        path = pair.image.path
        yield Reject(pair.id, path, "read", error.code, error.message, image_sha256)
        return
    truth = None
    if pair.mask is not None and mask is not None:
        try:
            truth = decode_truth(mask, image.shape, model.taxonomy, max_pixels)
        except RejectError as error:
            path = pair.mask.path
            yield Reject(pair.id, path, TRUTH_STAGE, error.code, error.message, truth_sha256)
    yield Picture(
        image_id=pair.id,
        path=pair.image.path,
        source_uri=uri,
        split=None,
        width=image.shape[1],
        height=image.shape[0],
        pixels=png.resize_image(image, model.height, model.width, model.resize),
        truth=truth,
        image_sha256=image_sha256,
        truth_sha256=truth_sha256,
    )


def decode_truth(
    data: bytes, shape: tuple[int, ...], taxonomy: Taxonomy, max_pixels: int
) -> UInt8Array:
    """Decodes the mask of an image of ``shape`` (height, width, 3) to class ids.

    Raises:
        RejectError: the mask cannot be decoded or used, or its size differs from the image's.
    """
    raw = png.decode_mask(data, max_pixels)
    if raw.shape != shape[:2]:
        raise RejectError(
            "size_mismatch",
            f"expected {shape[1]}x{shape[0]} as the image, found {raw.shape[1]}x{raw.shape[0]}",
        )
    return png.check_mask(raw, taxonomy)
