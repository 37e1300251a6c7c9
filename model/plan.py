"""What is trained on what: everything about a training that is known before any work."""

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

GEOMETRY: dict[str, Geometry] = {"unet": PADDED, "unet-2015": UNPADDED, "unet-dropout": PADDED}
"""The sizes that each architecture takes."""


@dataclass(frozen=True)
class Plan:
    """One training.

    Attributes:
        folder: of the published dataset.
        taxonomy: of the model; two classes where a target is told from the rest.
        table: the model's class id for each value of the dataset's masks, uint8 (256,).
        key: hash of dataset and configuration: the same key makes the same model.
    """

    folder: Path
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
        """Weights in the cross-entropy by class id, bounded, or None for equal ones.

        The manifest's are median-frequency weights. A class without a pixel has weight 0.
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
        """What travels with the model: how its input is made and what its output means."""
        return {
            "taxonomy": self.taxonomy.model_dump(mode="json"),
            "class_table": self.table.tolist(),
            "dataset_taxonomy_sha256": self.manifest.taxonomy_sha256,
            "dataset_fingerprint": self.manifest.fingerprint,
            "dataset_name": self.manifest.name,
            "height": self.manifest.config.height,
            "width": self.manifest.config.width,
            "resize": self.manifest.config.resize,
            "geometry": self.geometry.model_dump(),
        }


def plan(dataset: str, config: TrainConfig) -> Plan:
    """Reads the dataset's manifest and refuses what cannot be trained on it, before any work.

    Raises:
        UserError: says what is missing or does not fit.
    """
    folder = Path(dataset).absolute()
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
    key = hashlib.sha256(f"{manifest.fingerprint} {config.sha256()}".encode()).hexdigest()
    return Plan(folder, manifest, config, taxonomy, table, key)
