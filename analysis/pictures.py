"""Loads images of a run: input, ground truth, predicted mask, overlay and error map."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from analysis.tables import partition_key
from images import panels
from images.masks import read_mask
from images.png import decode_own
from runtime.errors import RejectError, UserError
from runtime.parquet import read_table
from runtime.storage import is_file, join, read_bytes, sha256
from schemas.classes import (
    VOID,
    ClassLabel,
    Taxonomy,
    UInt8Array,
    builtin_taxonomies,
    load_taxonomy,
)
from schemas.config import SourceConfig
from schemas.example import CorruptRecordError, Example, read_examples
from schemas.layout import MANIFEST, SOURCES, safe_name
from schemas.manifest import load_manifest
from schemas.stats import ConfusionMatrix

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_MASK_FOLDERS = {"RGB": ("Seg", "Mask"), "rgb": ("seg", "mask", "Seg", "Mask")}
"""Endings of the names of mask folders, by that of the image folder: CameraSeg beside CameraRGB."""

_MAX_NAME = 255 - len(".png")
"""Bytes of a file's name without the suffix."""


@dataclass(frozen=True)
class Scene:
    """One image of a run; all arrays have the size of its mask.

    Attributes:
        image: RGB, uint8 (height, width, 3); None if the image no longer exists or has changed.
        mask: predicted class ids, uint8 (height, width).
        truth: true class ids, 255 for void; None if they are unknown or have changed.
    """

    image_id: str
    image: UInt8Array | None
    mask: UInt8Array
    truth: UInt8Array | None
    taxonomy: Taxonomy

    def prediction(self) -> UInt8Array:
        """The mask in the class colours, over the image if there is one: RGB (height, width, 3)."""
        if self.image is None:
            return panels.colourise(self.mask, self.taxonomy)
        return panels.overlay(self.image, self.mask, self.taxonomy)

    def coloured_truth(self) -> UInt8Array | None:
        """The truth in the class colours, void white: RGB (height, width, 3)."""
        return None if self.truth is None else panels.colourise(self.truth, self.taxonomy)

    def errors(self) -> UInt8Array | None:
        """Wrong pixels in red over the image in pale grey: RGB (height, width, 3)."""
        if self.truth is None:
            return None
        return panels.error_map(self.truth, self.mask, self.image)


def load_scenes(
    connection: DuckDBPyConnection,
    run: dict[str, Any],
    ids: Sequence[str],
    dataset: str | Path | None = None,
) -> list[Scene]:
    """Loads images of a run, in the order of ``ids``.

    Inputs and truth come from the dataset's records, or else from the source PNGs and the masks
    beside them. Truth that does not reproduce the row's confusion matrix has changed since the run
    and is left out.

    Args:
        run: row of ``runs``.
        dataset: folder of the dataset that was predicted, if it has moved.

    Raises:
        UserError: the run has no such image, or ``dataset`` is not the one that was predicted.
    """
    taxonomy = taxonomy_of(connection, run)
    rows = connection.execute(
        "SELECT image_id, source_uri, image_sha256, mask.bytes, confusion FROM masks"
        " WHERE (model, version, source) = ($model, $version, $source)"
        " AND list_contains($ids, image_id)",
        partition_key(run) | {"ids": list(ids)},
    ).fetchall()
    by_id = {row[0]: row for row in rows}
    missing = [image_id for image_id in ids if image_id not in by_id]
    if missing:
        raise unknown_image(run, missing[0])
    folder = dataset_of(run, dataset)
    records = _records(folder, ids)
    class_table = _class_table(run, taxonomy, folder)
    raw_taxonomy = _raw_mask_taxonomy(run, taxonomy)
    scenes = []
    for image_id in ids:
        _, source_uri, image_sha256, data, confusion = by_id[image_id]
        mask = decode_own(data)
        image, truth = _image_and_truth(
            records.get(image_id), class_table, source_uri, image_sha256, mask.shape, raw_taxonomy
        )
        if truth is not None and not _reproduces(truth, mask, confusion, len(taxonomy)):
            truth = None
        scenes.append(Scene(image_id, image, mask, truth, taxonomy))
    return scenes


def unknown_image(run: dict[str, Any], image_id: str) -> UserError:
    """The error to raise for an id that a run does not have."""
    return UserError(
        f"run {run['run_id']} has no image {image_id!r}; image ids are in the table masks"
    )


def safe_path(image_id: str) -> str:
    """A unique relative path for an image id, the id itself if that can be a path below a folder.

    It never leads out of its folder.
    """
    return "/".join(
        part if _can_name_a_file(part) else safe_name(part) for part in image_id.split("/")
    )


def _can_name_a_file(part: str) -> bool:
    return part not in ("", ".", "..") and "\0" not in part and len(part.encode()) <= _MAX_NAME


def taxonomy_of(connection: DuckDBPyConnection, run: dict[str, Any]) -> Taxonomy:
    """The classes of a run, from the table ``classes``.

    Raises:
        UserError: it has none, e.g. because only some of the tables were copied.
    """
    rows = connection.execute(
        "SELECT class_id, class_name, color FROM classes"
        " WHERE (model, version, source) = ($model, $version, $source) ORDER BY class_id",
        partition_key(run),
    ).fetchall()
    if not rows:
        raise UserError(
            f"run {run['run_id']} has no rows in the table classes; copy all tables of its "
            "partition, or run `python -m beam.infer` again"
        )
    labels = tuple(
        ClassLabel(id=class_id, name=name, colour=(*bytes.fromhex(color[1:]),))
        for class_id, name, color in rows
    )
    return Taxonomy(name=run["taxonomy"], classes=labels)


def _reproduces(
    truth: UInt8Array, mask: UInt8Array, confusion: Sequence[int] | None, classes: int
) -> bool:
    if confusion is None or truth.shape != mask.shape:
        return False
    class_ids = truth[truth != VOID]
    if class_ids.size and class_ids.max() >= classes:
        return False
    return ConfusionMatrix.of(truth, mask, classes).counts.ravel().tolist() == list(confusion)


def dataset_of(run: dict[str, Any], dataset: str | Path | None) -> str | None:
    """Folder of the dataset that a run predicted, or None if it no longer exists."""
    if dataset is None:
        folder = str(run["source_uri"])
        exists = run["dataset_fingerprint"] and is_file(join(folder, MANIFEST))
        return folder if exists else None
    fingerprint = load_manifest(dataset).fingerprint
    if run["dataset_fingerprint"] is None:
        raise UserError(
            f"dataset {str(dataset)!r}: run {run['run_id']} predicted the images of "
            f"{run['source_uri']!r}, no dataset; leave --dataset out"
        )
    if fingerprint != run["dataset_fingerprint"]:
        raise UserError(
            f"dataset {str(dataset)!r}: expected fingerprint {run['dataset_fingerprint']}, "
            f"which run {run['run_id']} predicted, found {fingerprint}"
        )
    return str(dataset)


def _records(dataset: str | None, ids: Iterable[str]) -> dict[str, Example]:
    """Records of a dataset by id, without those that cannot be read."""
    if dataset is None:
        return {}
    wanted = set(ids)
    rows = read_table(
        join(dataset, SOURCES), columns=["shard"], filters=[("id", "in", sorted(wanted))]
    )
    examples = {}
    for name in sorted(set(rows["shard"].to_pylist()) - {None}):
        try:
            for example in read_examples(dataset, name):
                if example.id in wanted:
                    examples[example.id] = example
        except (OSError, CorruptRecordError):
            continue
    return examples


def _class_table(run: dict[str, Any], taxonomy: Taxonomy, folder: str | None) -> UInt8Array | None:
    """The model's class for each one of the dataset's, (256,), if it separates a target.

    None if the model has the dataset's classes.
    """
    if folder is None:
        return None
    binary, table = _one_vs_rest(load_manifest(folder).taxonomy, taxonomy)
    return table if binary and binary.name == run["taxonomy"] else None


def _one_vs_rest(
    taxonomy: Taxonomy, found: Taxonomy
) -> tuple[Taxonomy, UInt8Array] | tuple[None, None]:
    """``Taxonomy.one_vs_rest`` for the target that the second class of ``found`` names, if any."""
    try:
        return taxonomy.one_vs_rest(found.names[-1].split("+"))
    except UserError:
        return None, None


def _raw_mask_taxonomy(run: dict[str, Any], taxonomy: Taxonomy) -> Taxonomy | None:
    """The taxonomy that decodes raw masks; None unless it, or a target's, is a built-in one's."""
    for name in builtin_taxonomies():
        if not run["taxonomy"].startswith(name):
            continue
        builtin = load_taxonomy(name)
        for candidate in (builtin, _one_vs_rest(builtin, taxonomy)[0]):
            if candidate and candidate.sha256 == run["taxonomy_sha256"]:
                return candidate
    return None


def _image_and_truth(
    record: Example | None,
    class_table: UInt8Array | None,
    source_uri: str,
    image_sha256: str | None,
    shape: tuple[int, ...],
    taxonomy: Taxonomy | None,
) -> tuple[UInt8Array | None, UInt8Array | None]:
    """The image, resized to a mask's shape, and the truth; None for what cannot be read."""
    height, width = shape
    if record is not None:
        picture, truth = (Image.open(io.BytesIO(data)) for data in (record.image, record.mask))
        if picture.size == truth.size == (width, height):
            ids = np.asarray(truth)
            own_ids = ids if class_table is None else class_table[ids]
            return np.asarray(picture.convert("RGB")), own_ids
    try:
        data = read_bytes(source_uri)
        # Tables of an early version have no hashes.
        if image_sha256 and sha256(data) != image_sha256:
            return None, None
        with Image.open(io.BytesIO(data)) as file:
            turned = ImageOps.exif_transpose(file)
            image = turned.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    except (OSError, ValueError, Image.DecompressionBombError):
        return None, None
    return np.asarray(image), _read_truth_beside(source_uri, taxonomy)


def _read_truth_beside(source_uri: str, taxonomy: Taxonomy | None) -> UInt8Array | None:
    """Class ids of the mask beside an image in Lyft's layout, or None."""
    folders, name = source_uri.split("/")[:-1], PurePosixPath(source_uri).stem + ".png"
    depth = next((i for i in reversed(range(len(folders))) if _is_camera(folders[i])), None)
    if depth is None:
        return None
    camera = folders[depth]
    for ending in _MASK_FOLDERS[camera[-3:]]:
        mask_folders = [*folders[:depth], camera[:-3] + ending, *folders[depth + 1 :]]
        try:
            data = read_bytes("/".join([*mask_folders, name]))
            with Image.open(io.BytesIO(data)) as file:
                values = np.asarray(file if file.mode in ("L", "P") else file.convert("RGB"))
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
        if taxonomy:
            with suppress(RejectError):
                return read_mask(data, SourceConfig().max_pixels, taxonomy)
        return values if values.ndim == 2 else np.ascontiguousarray(values[..., 0])
    return None


def _is_camera(folder: str) -> bool:
    return folder.lower() == "camerargb" and folder[-3:] in _MASK_FOLDERS
