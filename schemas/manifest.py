"""The manifest of a published dataset: ``manifest.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from runtime.errors import UserError
from runtime.storage import is_folder, join, read_bytes
from runtime.yaml_files import explain
from schemas.classes import Taxonomy
from schemas.config import IngestConfig
from schemas.layout import MANIFEST

SCHEMA_VERSION = 1

FEW_GROUPS = 10
"""With fewer groups of images, the metrics on a split say little of other places."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardInfo(_Frozen):
    """One TFRecord file.

    Attributes:
        sha256: of the file.
        source_sha256: hash over its source pairs, in order, and all that decides their records.
        stats: of its records, see ``PixelStats.to_json``.
    """

    name: str
    split: str
    records: int
    bytes: int
    sha256: str
    source_sha256: str
    stats: dict[str, Any]


class SplitInfo(_Frozen):
    """One split: its number of records, its size, and its pixels by class name.

    Attributes:
        groups: number of groups of images that belong together, such as stretches of a drive.
    """

    records: int
    bytes: int
    class_pixels: dict[str, int]
    void_pixels: int
    groups: int = 0


class NearDuplicates(_Frozen):
    """Near-duplicates of images in different splits; only given splits have any.

    Two images are near-duplicates when their 64-bit difference hashes differ in at most
    ``max_distance`` bits.

    Attributes:
        images_across_splits: images in any of the pairs.
        evaluation_images: those of them in validation or test.
        frames_beside: frames whose neighbour in the sequence is in another split.
        examples: ids of a few pairs.
    """

    max_distance: int
    pairs_across_splits: int
    images_across_splits: int
    evaluation_images: int = 0
    frames_beside: int = 0
    examples: list[tuple[str, str]] = []


class Manifest(_Frozen):
    """A dataset version.

    Attributes:
        fingerprint: hash over the hashes of all sources, the config and the software; the
            dataset's identity in MLflow and in every Parquet footer.
        made_with: the software that decides the records: ``schemas.software.of_records``.
        source: folder or URI of the raw pairs.
        channel_mean, channel_std: of R, G, B in the train split, on the scale 0 to 1.
        class_weights: median-frequency weights of the train split, by class name.
        rejects: number of rejected inputs by reason code.
        doubtful: number of doubtful records; doubts: their number by code.
        files_listed: files below the source: those of records and rejects, and those skipped.
        skipped: number of files that the job ignores, by reason.
        files: sha256 of the files other than shards and manifest, by name.
        warnings: what to look at before training on the dataset.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    fingerprint: str
    made_with: str = ""
    source: str
    config: IngestConfig
    taxonomy: Taxonomy
    taxonomy_sha256: str
    splits: dict[str, SplitInfo]
    channel_mean: list[float]
    channel_std: list[float]
    class_weights: dict[str, float]
    near_duplicates: NearDuplicates | None
    rejects: dict[str, int]
    doubtful: int = 0
    doubts: dict[str, int] = {}
    files_listed: int = 0
    skipped: dict[str, int] = {}
    warnings: list[str]
    files: dict[str, str] = {}
    shards: list[ShardInfo]

    @property
    def records(self) -> int:
        """Number of records in all splits."""
        return sum(split.records for split in self.splits.values())

    def shard_names(self, split: str) -> list[str]:
        """File names of one split's shards, in order."""
        return [shard.name for shard in self.shards if shard.split == split]


def load_manifest(folder: str | Path) -> Manifest:
    """Reads the manifest of a published dataset.

    Raises:
        UserError: the folder does not exist or has no manifest, or the manifest is damaged.
    """
    path = join(folder, MANIFEST)
    try:
        return Manifest.model_validate_json(read_bytes(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        if not is_folder(folder):
            raise UserError(f"dataset {str(folder)!r}: there is no such folder") from error
        raise UserError(
            f"dataset {str(folder)!r} has no {MANIFEST}; "
            "pass the folder that `python -m beam.ingest` printed"
        ) from error
    except ValidationError as error:
        raise UserError(
            f"{path}: not a manifest that this version reads: {explain(error)}; ingest again"
        ) from error
