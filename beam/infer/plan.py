"""Plans an inference job: resolves model, source and engine, and the run's identity hashes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from beam.infer.engines.base import Runtime
from beam.infer.engines.choice import choose_runtime
from beam.infer.model_uri import ResolvedModel, resolve_model
from beam.shared.source import RawSource, source_of
from beam.shared.source_digest import digest_images
from runtime import storage
from runtime.errors import UserError
from schemas import software
from schemas.classes import with_void
from schemas.config import InferConfig
from schemas.layout import (
    MANIFEST,
    SOURCES,
    SPLITS,
    dataset_source_name,
    folder_source_name,
)
from schemas.manifest import Manifest, load_manifest
from schemas.prediction import SCHEMA_VERSION

_DATASET_FILES = (MANIFEST, SOURCES)
"""Files by which a folder is known to be a dataset."""


@dataclass(frozen=True)
class Job:
    """One inference job.

    Attributes:
        source: the dataset's folder, or the root of the raw images.
        manifest: of the dataset; None for raw images.
        source_name: name of the source in the tables' partitions.
        raw: the source of raw images; None for a dataset.
        any_png: whether every PNG is an image, since no file matches the layout.
        images: number of images to read.
        runtime: the chosen engine, precision and batch size.
        made_with: the software that decides the rows, as ``schemas.software`` describes it.
        recipe: hash of everything that determines an image's rows, except the bytes of image and
            mask.
        run_id: hash of model, source, configuration, engine and the tables' schema version; jobs
            with the same id produce the same rows.
        listing: local folder with the listing of ``raw``.
    """

    model: ResolvedModel
    config: InferConfig
    source: str
    manifest: Manifest | None
    source_name: str
    raw: RawSource | None
    any_png: bool
    images: int
    runtime: Runtime
    made_with: str
    recipe: str
    run_id: str
    listing: str = ""

    @property
    def fingerprint(self) -> str | None:
        """The dataset's; None for raw images."""
        return self.manifest.fingerprint if self.manifest else None

    @property
    def images_root(self) -> str:
        """Root of the source PNGs, to which the paths of images are relative."""
        return self.manifest.source if self.manifest else self.source

    def footer(self) -> dict[str, str | None]:
        """Metadata for the footer of every file."""
        return {
            "run_id": self.run_id,
            "model_uri": self.model.uri,
            "model_sha256": self.model.sha256,
            "mlflow_run_id": self.model.run_id,
            "dataset_fingerprint": self.fingerprint,
            "training_fingerprint": self.model.fingerprint,
            "taxonomy": self.model.taxonomy.name,
            "taxonomy_sha256": self.model.taxonomy.sha256,
            "engine": self.runtime.engine,
            "precision": self.runtime.precision,
            "made_with": self.made_with,
            "recipe": self.recipe,
        }


def plan_job(
    model: str,
    source: str | None,
    dataset: str | None,
    config: InferConfig,
    tracking_uri: str,
    processes: int,
    scratch: str,
) -> Job:
    """Finds the model and the images, and chooses the engine.

    Args:
        processes: number of workers on this machine; 0 if they are on others.
        scratch: folder for the listing and the model's files; it must exist as long as the job.

    Raises:
        UserError: the model or the input cannot be used, or they do not fit each other.
    """
    if source is not None and dataset is None:
        found = _find_raw_images(source, config, scratch)
    elif dataset is not None and source is None:
        found = _find_records(dataset, config)
    else:
        given = "neither" if source is None else "both"
        raise UserError(f"expected either --source or --dataset, found {given}")
    resolved = resolve_model(model, config, tracking_uri, scratch)
    if found.manifest is not None:
        check_taxonomy(resolved, found.place, found.manifest)
    else:
        masks = resolved.dataset_taxonomy
        resolved = replace(
            resolved,
            taxonomy=with_void(resolved.taxonomy, config.void),
            dataset_taxonomy=with_void(masks, config.void) if masks else None,
        )
    runtime = choose_runtime(config, processes, Path(resolved.keras_file).stat().st_size)
    made_with = software.of_rows(runtime.engine)
    recipe = _recipe(resolved, config, found, runtime, made_with)
    return Job(
        model=resolved,
        config=config,
        source=found.place,
        manifest=found.manifest,
        source_name=config.source_name or found.name,
        raw=found.raw,
        any_png=found.any_png,
        images=found.images,
        runtime=runtime,
        made_with=made_with,
        recipe=recipe,
        run_id=_hash(recipe, found.place, found.identity, config.sha256())[:16],
        listing=scratch,
    )


class _Input(NamedTuple):
    """The images of a job; ``manifest``, ``raw``, ``any_png`` and ``images`` as in ``Job``.

    Attributes:
        place: the dataset's folder, or the root of the raw images.
        identity: the dataset's fingerprint, or the digest of the source's listing.
        name: of the source, unless the config gives it another.
    """

    place: str
    identity: str
    name: str
    images: int
    manifest: Manifest | None = None
    raw: RawSource | None = None
    any_png: bool = False


def _find_records(dataset: str, config: InferConfig) -> _Input:
    place = storage.absolute(dataset)
    manifest = load_manifest(place)
    splits = SPLITS if config.split == "all" else (config.split,)
    images = sum(manifest.splits[split].records for split in splits)
    if images == 0:
        raise UserError(
            f"dataset {dataset!r} has no record in split {config.split}; choose another --split"
        )
    name = dataset_source_name(manifest.name, manifest.fingerprint, config.split)
    return _Input(place, manifest.fingerprint, name, images, manifest)


def _find_raw_images(source: str, config: InferConfig, scratch: str) -> _Input:
    place = storage.absolute(source)
    storage.require_folder(place, "source")
    raw = source_of(place, config)
    digest = digest_images(raw, scratch)
    any_png = not digest.images
    # The pictures of its data card would be taken for images.
    if any_png and all(storage.is_file(storage.join(place, one)) for one in _DATASET_FILES):
        raise UserError(f"source {source!r} is a dataset of beam.ingest: pass it as --dataset")
    return _Input(
        place,
        digest.digest,
        folder_source_name(place),
        digest.images or digest.other_pngs,
        raw=raw,
        any_png=any_png,
    )


def _recipe(
    model: ResolvedModel, config: InferConfig, found: _Input, runtime: Runtime, made_with: str
) -> str:
    """See ``Job.recipe``."""
    raw, manifest = found.raw, found.manifest
    return _hash(
        SCHEMA_VERSION,
        model.sha256,
        model.taxonomy.sha256,  # the masks and the table of classes contain its colours
        model.height,
        model.width,
        model.resize,
        made_with,
        runtime.engine,
        runtime.precision,
        runtime.batch_size,
        runtime.flip,
        *((f"upscale {runtime.upscale}",) if runtime.upscale > 1 else ()),
        model.windows,
        config.max_pixels,
        *(_reading(config, raw) if raw else ()),
        *((model.dataset_taxonomy.sha256,) if raw and model.dataset_taxonomy else ()),
        # They determine pixels, truth and split of a dataset's record.
        *((manifest.config.sha256(), manifest.taxonomy_sha256) if manifest else ()),
    )


def check_taxonomy(model: ResolvedModel, dataset: str, manifest: Manifest) -> None:
    """Refuses a dataset whose class ids have another meaning than the model's.

    Raises:
        UserError: names both taxonomies.
    """
    known = (model.taxonomy.mapping_sha256, model.dataset_mapping_sha256)
    if manifest.taxonomy.mapping_sha256 not in known:
        raise UserError(
            f"model {model.uri!r} predicts taxonomy {model.taxonomy.name}, but dataset {dataset!r} "
            f"holds {manifest.taxonomy.name}; their classes differ"
        )


def _reading(config: InferConfig, raw: RawSource) -> tuple[str, ...]:
    """The settings for decoding raw images and masks, without the taxonomy."""
    return config.mask_encoding, config.image_channels, raw.layout.model_dump_json(), raw.pairs


def _hash(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()
