"""Pictures in, rows out: reading of images, and what is said of each prediction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from beam import png
from beam.model_uri import ResolvedModel
from beam.pairing import Pair, Reject
from beam.storage import join, read_bytes
from schemas.classes import UInt8Array
from schemas.errors import RejectError, UserError
from schemas.example import CorruptRecordError, parse, read_records
from schemas.layout import SOURCES
from schemas.manifest import load_manifest
from schemas.stats import ConfusionMatrix

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Picture:
    """An image on its way through the model.

    Attributes:
        path: of the source PNG, below the source root.
        pixels: RGB at the model's size, uint8 (height, width, 3).
        width, height: size of the image that was read.
        truth: class ids at the size that was read, uint8 (height, width), where known.
    """

    image_id: str
    path: str
    source_uri: str
    split: str | None
    width: int
    height: int
    pixels: UInt8Array
    truth: UInt8Array | None


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
    dataset: str, split: str, name: str, model: ResolvedModel
) -> Iterator[Picture | Reject]:
    """The records of one shard; their size is the dataset's."""
    rows = pq.read_table(
        Path(dataset, SOURCES), columns=["id", "image_path"], filters=[("shard", "=", name)]
    )
    paths = dict(zip(rows["id"].to_pylist(), rows["image_path"].to_pylist(), strict=True))
    root = load_manifest(dataset).source
    try:
        with open(join(dataset, name), "rb") as file:
            examples = [parse(record) for record in read_records(file, name)]
    except (OSError, CorruptRecordError) as error:
        raise UserError(
            f"dataset {dataset!r}: shard {name} cannot be read ({error}); ingest again to mend it"
        ) from error
    for example in examples:
        path = paths[example.id]
        try:
            image = png.decode_image(example.image, max_pixels=1 << 31)
            truth = png.decode_mask(example.mask, max_pixels=1 << 31)
        except RejectError as error:
            yield Reject(example.id, path, "read", error.code, error.message)
            continue
        yield Picture(
            image_id=example.id,
            path=path,
            source_uri=join(root, path),
            split=split,
            width=image.shape[1],
            height=image.shape[0],
            pixels=png.resize_image(image, model.height, model.width, model.resize),
            truth=truth,
        )


def read_picture(pair: Pair, source: str, model: ResolvedModel, max_pixels: int) -> Picture:
    """The image of a pair without its mask.

    Raises:
        RejectError: the image cannot be read or is not fit.
    """
    uri = join(source, pair.image.path)
    try:
        image = png.decode_image(read_bytes(uri), max_pixels)
    except OSError as error:
        raise RejectError("unreadable", str(error)) from error
    return Picture(
        image_id=pair.id,
        path=pair.image.path,
        source_uri=uri,
        split=None,
        width=image.shape[1],
        height=image.shape[0],
        pixels=png.resize_image(image, model.height, model.width, model.resize),
        truth=None,
    )


def read_truth(
    pair: Pair, picture: Picture, source: str, model: ResolvedModel, max_pixels: int
) -> UInt8Array | None:
    """The mask of a pair as class ids, or None where there is none.

    Raises:
        RejectError: the mask cannot be read, is not fit, or has another size than the image.
    """
    if pair.mask is None:
        return None
    try:
        raw = png.decode_mask(read_bytes(join(source, pair.mask.path)), max_pixels)
    except OSError as error:
        raise RejectError("unreadable", str(error)) from error
    if raw.shape != (picture.height, picture.width):
        raise RejectError(
            "size_mismatch",
            f"expected {picture.width}x{picture.height} as the image, "
            f"found {raw.shape[1]}x{raw.shape[0]}",
        )
    return png.check_mask(raw, model.taxonomy)


def describe(
    prediction: Prediction, model: ResolvedModel, run_id: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The row of ``masks`` and the rows of ``class_stats`` of one image.

    The mask has the size of the image that was read; each of its pixels takes class and confidence
    of the nearest pixel that the model saw.
    """
    picture, classes = prediction.picture, len(model.taxonomy)
    size = (picture.height, picture.width)
    mask = png.resize_nearest(prediction.class_id, *size)
    confidence = png.resize_nearest(prediction.confidence, *size)
    counts = np.bincount(mask.ravel(), minlength=classes)
    sums = np.bincount(mask.ravel(), confidence.ravel(), minlength=classes)
    matrix = None
    if picture.truth is not None:
        matrix = ConfusionMatrix.of(picture.truth, mask, classes)
    mask_row = {
        "image_id": picture.image_id,
        "source_uri": picture.source_uri,
        "split": picture.split,
        "width": picture.width,
        "height": picture.height,
        "mask": {
            "bytes": png.encode_palette(mask, model.taxonomy.palette),
            "path": f"{picture.image_id}.png",
        },
        "mean_confidence": float(sums.sum() / mask.size),
        "pixel_accuracy": _or_none(matrix.pixel_accuracy()) if matrix else None,
        "confusion": matrix.counts.ravel().tolist() if matrix else None,
        "run_id": run_id,
    }
    iou = matrix.iou() if matrix else None
    class_rows = [
        {
            "image_id": picture.image_id,
            "split": picture.split,
            "class_id": label.id,
            "class_name": label.name,
            "pixel_count": int(counts[label.id]),
            "pixel_fraction": float(counts[label.id] / mask.size),
            "mean_confidence": _or_none(sums[label.id] / counts[label.id])
            if counts[label.id]
            else None,
            "true_pixel_count": int(matrix.true_pixels[label.id]) if matrix else None,
            "intersection": int(matrix.intersection[label.id]) if matrix else None,
            "union": int(matrix.union[label.id]) if matrix else None,
            "iou": _or_none(iou[label.id]) if iou is not None else None,
            "run_id": run_id,
        }
        for label in model.taxonomy.classes
    ]
    return mask_row, class_rows


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
