"""The plan of a training: everything about it that is known before it starts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from schemas.classes import Taxonomy, UInt8Array
from schemas.config import TrainConfig
from schemas.errors import UserError
from schemas.geometry import PADDED, UNPADDED, Geometry
from schemas.layout import SPLITS
from schemas.manifest import Manifest, load_manifest
from schemas.storage import absolute, file_sha256

GEOMETRY: dict[str, Geometry] = {"unet": PADDED, "unet-2015": UNPADDED, "unet-dropout": PADDED}
"""The sizes that each architecture takes."""

REGISTERED = ("models:/", "runs:/")
"""Prefixes of the URI of a model in MLflow; anything else is a file path."""


@dataclass(frozen=True)
class Plan:
    """One training.

    Attributes:
        folder: folder or URI of the published dataset.
        taxonomy: classes of the model; two if the config names a target.
        table: the model's class id for each value of the dataset's masks, uint8 (256,).
        key: hash of dataset, configuration and initial weights. Equal keys make equal models, once
            ``model.registry.pinned`` has replaced an alias with a version.
    """

    folder: str
    manifest: Manifest
    config: TrainConfig
    taxonomy: Taxonomy
    table: UInt8Array
    key: str

    @property
    def geometry(self) -> Geometry:
        """The sizes that the network takes."""
        return GEOMETRY[self.config.architecture]

    def class_weights(self) -> list[float] | None:
        """Bounded weights in the cross-entropy by class id, or None for equal weights.

        Without a target, they are the manifest's median-frequency weights, 0 for a class without
        pixels. With a target, they are the mean pixel count of the two classes divided by each
        class's own.
        """
        if self.config.class_weights == "none":
            return None
        bound = self.config.max_class_weight
        weights = self.manifest.class_weights
        if self.config.target:
            pixels = np.zeros(2)
            by_name = self.manifest.splits["train"].class_pixels
            for label in self.manifest.taxonomy.classes:
                pixels[self.table[label.id]] += by_name[label.name]
            return [float(min(pixels.mean() / max(one, 1), bound)) for one in pixels]
        return [min(weights[name], bound) for name in self.taxonomy.names]

    def model_metadata(self) -> dict[str, Any]:
        """Metadata stored with the model: how its input is made and what its output means."""
        return {
            "taxonomy": self.taxonomy.model_dump(mode="json"),
            "class_table": self.table.tolist(),
            "dataset_mapping_sha256": self.manifest.taxonomy.mapping_sha256,
            "dataset_fingerprint": self.manifest.fingerprint,
            "dataset_name": self.manifest.name,
            "height": self.manifest.config.height,
            "width": self.manifest.config.width,
            "resize": self.manifest.config.resize,
            "geometry": self.geometry.model_dump(),
        }


def plan(dataset: str, config: TrainConfig) -> Plan:
    """Reads the dataset's manifest and checks that the configuration can be trained on it.

    Raises:
        UserError: something is missing or does not fit; the message says what.
    """
    folder = absolute(dataset)
    manifest = load_manifest(folder)
    if not manifest.config.height:
        raise UserError(
            f"dataset {manifest.name} holds images of any size, but a batch has one; "
            "ingest with a --height and a --width"
        )
    empty = [split for split in SPLITS if not manifest.splits[split].records]
    if empty:
        raise UserError(
            f"dataset {manifest.name} has no record in {', '.join(empty)}; ingest more pairs, or "
            "with a smaller --block_length or --split_by=image"
        )
    taxonomy, table = manifest.taxonomy, np.arange(256, dtype=np.uint8)
    if config.target:
        names = [name.strip() for name in config.target.split(",")]
        taxonomy, table = taxonomy.told_from_rest(names)
    return Plan(folder, manifest, config, taxonomy, table, training_key(manifest, config))


def training_key(manifest: Manifest, config: TrainConfig) -> str:
    """See ``Plan.key``; a file to start from counts by its content, not by its name.

    Raises:
        UserError: there is no such file.
    """
    origin = config.start_from
    if origin and not origin.startswith(REGISTERED):
        if not Path(origin).is_file():
            raise UserError(f"start_from {origin!r}: there is no such .keras file")
        config = config.model_copy(update={"start_from": file_sha256(origin)})
    return hashlib.sha256(f"{manifest.fingerprint} {config.sha256()}".encode()).hexdigest()
