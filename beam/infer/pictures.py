"""Reads the images to predict, from raw pairs or a dataset's records; types of the results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from beam.infer.engines.base import Float32Array
from beam.infer.incremental import NO_RESULTS, PreviousResults
from beam.infer.model_uri import ResolvedModel
from beam.infer.runs import TRUTH_STAGE
from beam.infer.table_parts import ReusedRows
from beam.shared.crash_journal import check_no_crash
from beam.shared.pairing import Pair, Reject, check_size
from images import masks, png
from runtime.errors import RejectError, UserError, first_line
from runtime.listing import SourceFile
from runtime.parquet import read_table
from runtime.storage import join, read_bytes, sha256
from schemas.classes import UInt8Array
from schemas.config import SourceConfig
from schemas.example import CorruptRecordError, Example, read_examples
from schemas.layout import SOURCES
from schemas.manifest import ShardInfo, load_manifest


@dataclass(frozen=True)
class Picture:
    """An image to be predicted.

    Attributes:
        path: of the source PNG, below the source root.
        pixels: RGB at the size at which it is predicted, uint8 (height, width, 3).
        width, height: size of the image that was read.
        truth: class ids at the size that was read, uint8 (height, width); None without a usable
            mask.
        image_sha256: hash of the bytes of the source PNG.
        truth_sha256: hash of the bytes of the mask's PNG, or of a record's mask; None without one.
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
    """Class id, uint8, and highest probability, float32, of each of the picture's pixels.

    With ``Runtime.upscale``, both are that many times as high and wide as the pixels.
    """

    picture: Picture
    class_id: UInt8Array
    confidence: Float32Array


class Unpredicted(NamedTuple):
    """A picture that the model failed on, with the code and the message of its reject."""

    picture: Picture
    code: str
    message: str


def read_shard(
    dataset: str,
    split: str,
    name: str,
    model: ResolvedModel,
    previous: Mapping[str, PreviousResults] | None = None,
) -> Iterator[Picture | ReusedRows | Reject]:
    """Reads the records of one shard; ``width`` and ``height`` are those of the dataset's images.

    Args:
        previous: results of an earlier run, by image id, which are reused.

    Raises:
        UserError: the dataset is damaged or incomplete.
    """
    previous = previous or {}
    manifest = load_manifest(dataset)
    paths = source_paths(dataset, name)
    class_table = None
    if manifest.taxonomy.mapping_sha256 != model.taxonomy.mapping_sha256 and model.class_table:
        class_table = np.array(model.class_table, np.uint8)
    (shard,) = (one for one in manifest.shards if one.name == name)
    for example in _examples(dataset, shard):
        (path, mask_path), image_sha256 = paths[example.id], example.source_sha256
        truth_sha256 = sha256(example.mask)
        uri = join(manifest.source, path)
        known = previous.get(example.id, NO_RESULTS)
        mask_size = known.find_mask_size(uri, split, image_sha256, truth_sha256)
        if mask_size is not None:
            if reject := known.find_mask_reject(mask_path, truth_sha256):
                yield reject
            yield example.id, mask_size
            continue
        try:
            image = png.decode_image(example.image, png.NO_PIXEL_LIMIT)
        except RejectError as error:
            yield Reject(example.id, path, "read", error.code, error.message, image_sha256)
            continue
        truth = None
        try:
            truth = png.decode_ids(example.mask)
            if class_table is not None:
                truth = class_table[truth]
        except RejectError as error:
            code, message = error.code, error.message
            yield Reject(example.id, mask_path, TRUTH_STAGE, code, message, truth_sha256)
        yield Picture(
            image_id=example.id,
            path=path,
            source_uri=uri,
            split=split,
            width=image.shape[1],
            height=image.shape[0],
            pixels=model.fit(image),
            truth=truth,
            image_sha256=image_sha256,
            truth_sha256=truth_sha256,
        )


def source_paths(dataset: str, shard: str) -> dict[str, tuple[str, str]]:
    """Paths of image and mask by id, for the records of a shard."""
    columns = ["id", "image_path", "mask_path"]
    try:
        rows = read_table(join(dataset, SOURCES), columns, filters=[("shard", "=", shard)])
    except (OSError, ValueError) as error:
        raise _damaged(dataset, SOURCES, error) from error
    return {row["id"]: (row["image_path"], row["mask_path"]) for row in rows.to_pylist()}


def _examples(dataset: str, shard: ShardInfo) -> Iterator[Example]:
    """The records of a shard; raises UserError if they are damaged or incomplete."""
    records = 0
    try:
        for example in read_examples(dataset, shard.name):
            records += 1
            yield example
    except (OSError, CorruptRecordError) as error:
        raise _damaged(dataset, f"shard {shard.name}", error) from error
    if records != shard.records:
        counts = f"expected {shard.records} records, found {records}"
        raise _damaged(dataset, f"shard {shard.name}", counts)


def _damaged(dataset: str, part: str, error: object) -> UserError:
    return UserError(
        f"dataset {dataset!r}: {part} cannot be read ({first_line(error)}); "
        "ingest again to repair it"
    )


def read_pair(
    pair: Pair,
    source: str,
    model: ResolvedModel,
    config: SourceConfig,
    previous: PreviousResults,
    crashed: frozenset[str] = frozenset(),
) -> Iterator[Picture | ReusedRows | Reject]:
    """Reads the image of a pair, with its truth if there is a usable mask.

    Args:
        crashed: paths on which a decoder crashes.

    Yields:
        If the image cannot be used, its reject. Otherwise the reject of the mask, if that cannot be
        used; then the picture, or a reference to its rows if neither image nor mask has changed
        since an earlier run.
    """
    uri, path = join(source, pair.image.path), pair.image.path
    try:
        data = _read_file(pair.image, source, config)
    except RejectError as error:
        yield Reject(pair.id, path, "read", error.code, error.message)
        return
    image_sha256 = sha256(data)
    if reject := previous.find_reject(path, image_sha256):
        yield reject
        return
    mask = _read_mask(pair, source, config)
    mask_size = previous.find_mask_size(uri, None, image_sha256, mask.sha256)
    if mask_size is not None:
        # A mask may be rejected because of its image, so its reject is reused only with the image.
        reject = mask.reject
        if pair.mask and not reject:
            reject = previous.find_mask_reject(pair.mask.path, mask.sha256)
        if reject:
            yield reject
        yield pair.id, mask_size
        return
    try:
        check_no_crash(path, crashed)
        image = png.read_image(data, config)
        truth, reject = _truth_of(pair, mask, image, model, config, crashed)
    except RejectError as error:
        yield Reject(pair.id, path, "read", error.code, error.message, image_sha256)
        return
    if reject:
        yield reject
    yield Picture(
        image_id=pair.id,
        path=path,
        source_uri=uri,
        split=None,
        width=image.shape[1],
        height=image.shape[0],
        pixels=model.fit(image),
        truth=truth,
        image_sha256=image_sha256,
        truth_sha256=mask.sha256,
    )


def _read_file(file: SourceFile, source: str, config: SourceConfig) -> bytes:
    """The bytes of a listed file.

    Raises:
        RejectError: too_large or unreadable.
    """
    check_size(file.size, config)
    try:
        return read_bytes(join(source, file.path))
    except OSError as error:
        raise RejectError("unreadable", str(error)) from error


class _Mask(NamedTuple):
    """Bytes and hash of a mask, or its reject if it is unreadable; all None without a mask."""

    data: bytes | None = None
    sha256: str | None = None
    reject: Reject | None = None


def _read_mask(pair: Pair, source: str, config: SourceConfig) -> _Mask:
    if pair.mask is None:
        return _Mask()
    try:
        data = _read_file(pair.mask, source, config)
    except RejectError as error:
        reject = Reject(pair.id, pair.mask.path, TRUTH_STAGE, error.code, error.message)
        return _Mask(reject=reject)
    return _Mask(data, sha256(data))


def _truth_of(
    pair: Pair,
    mask: _Mask,
    image: UInt8Array,
    model: ResolvedModel,
    config: SourceConfig,
    crashed: frozenset[str],
) -> tuple[UInt8Array | None, Reject | None]:
    """Class ids, or the reject of the mask; neither if there is no mask."""
    if pair.mask is None or mask.data is None:
        return None, mask.reject
    try:
        check_no_crash(pair.mask.path, crashed)
        truth = masks.read_mask_for(mask.data, image, model.mask_taxonomy, config)
        return model.own_ids(truth), None
    except RejectError as error:
        path = pair.mask.path
        return None, Reject(pair.id, path, TRUTH_STAGE, error.code, error.message, mask.sha256)
