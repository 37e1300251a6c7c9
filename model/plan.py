"""The plan of a training: dataset, classes, class weights and key, known before it starts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.encoders.weights import KERAS_ENCODERS, LITE0, has_encoder, weights_file
from runtime.errors import UserError
from runtime.storage import absolute, file_sha256
from schemas.classes import Taxonomy, UInt8Array
from schemas.config import IngestConfig, TrainConfig
from schemas.geometry import ON_ENCODER, PADDED, UNPADDED, Geometry
from schemas.layout import SPLITS
from schemas.manifest import Manifest, load_manifest
from schemas.stats import Int64Array

GEOMETRY: dict[str, Geometry] = {"unet": PADDED, "unet-2015": UNPADDED, "unet-dropout": PADDED}
"""The sizes that each architecture takes; a U-Net on an encoder takes ``ON_ENCODER``."""

REGISTERED = ("models:/", "runs:/")
"""Prefixes of the URI of a model in MLflow; anything else is a file path."""


@dataclass(frozen=True)
class Plan:
    """One training.

    Attributes:
        folder: folder or URI of the published dataset.
        taxonomy: classes of the model; two if the config names a target.
        class_table: the model's class id for each value of the dataset's masks, uint8 (256,).
        key: hash of dataset, configuration and initial weights. Equal keys mean equal trainings,
            once ``model.registry.with_pinned_start`` has replaced an alias with a version.
    """

    folder: str
    manifest: Manifest
    config: TrainConfig
    taxonomy: Taxonomy
    class_table: UInt8Array
    key: str

    @property
    def geometry(self) -> Geometry:
        """The sizes that the network takes."""
        return GEOMETRY.get(self.config.architecture, ON_ENCODER)

    def class_weights(self) -> list[float] | None:
        """Weights of the classes in the cross-entropy by id, bounded; None for equal weights.

        Without a target, they are the manifest's median-frequency weights, 0 for a class without
        pixels. With a target, they are the mean pixel count of the two classes divided by each
        class's own. ``sqrt`` takes their square roots.
        """
        if self.config.class_weights == "none":
            return None
        power = 0.5 if self.config.class_weights == "sqrt" else 1.0
        bound = self.config.max_class_weight
        weights = self.manifest.class_weights
        if self.config.target:
            pixels = self.class_pixels("train")
            return [float(min((pixels.mean() / max(one, 1)) ** power, bound)) for one in pixels]
        return [min(weights[name] ** power, bound) for name in self.taxonomy.names]

    def class_pixels(self, split: str) -> Int64Array:
        """Pixels of each of the model's classes in a split, (classes,)."""
        pixels = np.zeros(len(self.taxonomy), np.int64)
        by_name = self.manifest.splits[split].class_pixels
        for label in self.manifest.taxonomy.classes:
            pixels[self.class_table[label.id]] += by_name[label.name]
        return pixels

    def input_size(self) -> dict[str, Any]:
        """The size of the dataset's images, 0 if they keep their own, and how they were resized."""
        config = self.manifest.config
        return {"height": config.height, "width": config.width, "resize": config.resize}

    def model_metadata(self) -> dict[str, Any]:
        """Metadata stored with the model: how its input is made and what its output means."""
        # A target's own taxonomy cannot say what is void among the classes that it merges.
        masks = {"dataset_taxonomy": self.manifest.taxonomy.model_dump(mode="json")}
        return {
            **(masks if self.config.target else {}),
            "taxonomy": self.taxonomy.model_dump(mode="json"),
            "class_table": self.class_table.tolist(),
            "dataset_mapping_sha256": self.manifest.taxonomy.mapping_sha256,
            "dataset_fingerprint": self.manifest.fingerprint,
            "dataset_name": self.manifest.name,
            **self.input_size(),
            "geometry": self.geometry.model_dump(),
        }


def plan(dataset: str, config: TrainConfig, needed: Sequence[str] = SPLITS) -> Plan:
    """Reads the dataset's manifest and checks that the configuration can be trained on it.

    Args:
        needed: splits that must have records.

    Raises:
        UserError: something is missing or does not fit; the message says what.
    """
    folder = absolute(dataset)
    manifest = load_manifest(folder)
    check_size(manifest.config)
    empty = [split for split in needed if not manifest.splits[split].records]
    if empty:
        raise UserError(
            f"dataset {manifest.name} has no record in {' and '.join(empty)}; ingest more pairs, "
            "with a smaller --block_length, or with --validation and --test above 0"
        )
    taxonomy, class_table = classes_of(config, manifest.taxonomy)
    check_architecture(config)
    config = config.for_images(manifest.splits["train"].records)
    return Plan(folder, manifest, config, taxonomy, class_table, training_key(manifest, config))


def check_size(config: IngestConfig) -> None:
    """Raises UserError for an ingest whose images keep their own sizes."""
    if not config.height:
        raise UserError(
            f"dataset {config.name} holds images of any size, but a batch has one; "
            "ingest with a --height and a --width"
        )


def check_target(plan: Plan) -> None:
    """Refuses a training whose target the train split lacks, or holds nothing else than.

    Such a network answers the same everywhere, which on a rare class is right nearly everywhere.

    Raises:
        UserError: names the target.
    """
    if not plan.config.target:
        return
    pixels = plan.class_pixels("train")
    if not all(pixels):
        found = "no pixel of it" if pixels[0] else "nothing else"
        raise UserError(
            f"target {plan.config.target!r}: the train split of dataset {plan.manifest.name} has "
            f"{found}, so nothing can be learnt; choose other classes, or ingest more pairs"
        )


def check_architecture(config: TrainConfig) -> None:
    """Raises UserError for an architecture that does not exist, or has no use for its weights."""
    if config.architecture not in GEOMETRY and not has_encoder(config.architecture):
        raise UserError(
            f"architecture {config.architecture!r}: expected {', '.join(GEOMETRY)}, {LITE0}, or "
            f"unet- and one of {', '.join(KERAS_ENCODERS)}"
        )
    named = config.encoder_weights
    if named not in ("imagenet", "none") and not has_encoder(config.architecture):
        raise UserError(
            f"encoder_weights {named!r}: architecture {config.architecture} has no pretrained "
            "encoder; choose one that has, or start from a whole network with --start_from"
        )


def check_ingest(config: IngestConfig) -> None:
    """Raises UserError for an ingest whose dataset cannot be trained on."""
    check_size(config)
    missing = [split for split in ("validation", "test") if not getattr(config, split)]
    if missing:
        raise UserError(
            f"dataset {config.name} is to have no {' and no '.join(missing)} split, but a training "
            f"needs each; ingest with --{missing[0]} above 0"
        )


def classes_of(config: TrainConfig, taxonomy: Taxonomy) -> tuple[Taxonomy, UInt8Array]:
    """The classes of a model, and its class id for each value of the dataset's masks, (256,).

    Raises:
        UserError: the target names a class that the taxonomy does not have.
    """
    if not config.target:
        return taxonomy, np.arange(256, dtype=np.uint8)
    return taxonomy.one_vs_rest([name.strip() for name in config.target.split(",")])


def training_key(manifest: Manifest, config: TrainConfig) -> str:
    """See ``Plan.key``; a file of initial weights counts by its content, not by its name.

    Raises:
        UserError: there is no such file, or the encoder's weights are not installed.
    """
    origin = config.start_from
    if origin and not origin.startswith(REGISTERED):
        if not Path(origin).is_file():
            raise UserError(f"start_from {origin!r}: there is no such .keras file")
        config = config.model_copy(update={"start_from": file_sha256(origin)})
    if (path := weights_file(config)) and config.encoder_weights != "imagenet":
        config = config.model_copy(update={"encoder_weights": file_sha256(path)})
    return hashlib.sha256(f"{manifest.fingerprint} {config.sha256()}".encode()).hexdigest()
