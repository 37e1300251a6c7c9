"""Incremental ingest: finds published versions that are up to date, or whose records are reused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import pyarrow.compute as pc

from beam.ingest.record_files import RecordRef
from beam.ingest.records import REDUNDANT_CODES, TRANSIENT_CODES, ProcessedPair, Recipe, recipe_of
from beam.shared.intact import intact_files
from beam.shared.source import source_of
from beam.shared.source_digest import SourceDigest, digest_pairs
from beam.shared.staging import make_output, remove_dead_staging
from runtime import listing, storage
from runtime.command_line import UP_TO_DATE, log
from runtime.errors import UserError
from runtime.parquet import read_footer, read_table
from runtime.storage import join
from schemas.config import IngestConfig
from schemas.layout import MANIFEST, SOURCES, version_name
from schemas.manifest import Manifest, ShardInfo, load_manifest
from schemas.sources import LISTING_KEY, rows_of
from schemas.sources import SOURCES as SOURCES_SCHEMA


@dataclass(frozen=True)
class PublishedShards:
    """A published version whose records and shards may be reused.

    Attributes:
        shards: by the hash of their sources.
    """

    folder: str
    shards: dict[str, ShardInfo]

    @classmethod
    def of(cls, folder: str, manifest: Manifest) -> PublishedShards:
        """The shards of the dataset version in ``folder``."""
        return cls(folder, {shard.source_sha256: shard for shard in manifest.shards})


@dataclass(frozen=True)
class Job:
    """An ingest before it reads any file.

    Attributes:
        datasets: folder of the dataset's versions.
        source_digest: of the source's listing.
        listing: local folder with the parts of the listing.
        published: versions made by the same recipe, newest first.
    """

    recipe: Recipe
    datasets: str
    source_digest: SourceDigest
    listing: str
    published: list[tuple[str, Manifest]]


def prepare(source: str, output: str, config: IngestConfig, listing: str) -> Job:
    """Lists the source and the published versions.

    Args:
        listing: local folder in which the listing is written.

    Raises:
        UserError: there is nothing to read, or the output cannot be written.
    """
    recipe = recipe_of(source, config)
    storage.require_folder(recipe.source, "source")
    datasets = join(make_output(output), config.name)
    digest = digest_pairs(source_of(source, config), listing)
    return Job(recipe, datasets, digest, listing, published_versions(datasets, recipe))


def find_unchanged(job: Job) -> str | None:
    """Folder of an intact version that a run would publish again; None if there is none."""
    for folder, manifest in job.published:
        if is_unchanged(folder, manifest, job.source_digest.digest):
            # Left by a job that was killed just after publishing.
            remove_dead_staging(job.datasets)
            log(f"{UP_TO_DATE}: {manifest.records} records, all files intact")
            return folder
    return None


def published_versions(datasets: str, recipe: Recipe) -> list[tuple[str, Manifest]]:
    """Versions made by the same recipe, newest first; unreadable ones are skipped."""
    versions = []
    for name in listing.folders(datasets):
        if name.startswith("."):
            continue
        folder = join(datasets, name)
        try:
            manifest = load_manifest(folder)
        except UserError:
            continue
        made_by = Recipe(manifest.source, manifest.config, manifest.taxonomy, manifest.made_with)
        if (made_by.source, made_by.sha256()) == (recipe.source, recipe.sha256()):
            versions.append((storage.modified(join(folder, MANIFEST)), folder, manifest))
    return [(folder, manifest) for _, folder, manifest in sorted(versions, reverse=True)]


def version_folder(datasets: str, manifest: Manifest) -> str:
    """The folder for a version; it has a suffix if another source has the same fingerprint."""
    name = version_name(manifest.fingerprint)
    with suppress(UserError):
        if load_manifest(join(datasets, name)).source != manifest.source:
            name += f"-{storage.sha256(manifest.source.encode())[:6]}"
    return join(datasets, name)


def is_unchanged(folder: str, manifest: Manifest, listing: str) -> bool:
    """True if a run would publish the same files: the listing is the same, and all are intact."""
    if TRANSIENT_CODES & manifest.rejects.keys():
        return False
    try:
        if read_footer(join(folder, SOURCES)).metadata[LISTING_KEY] != listing.encode():
            return False
        expected = file_digests(folder, manifest)
        return intact_files(expected, join(folder, MANIFEST)) == expected.keys()
    except (OSError, KeyError, TypeError, ValueError):
        return False


def file_digests(folder: str, manifest: Manifest) -> dict[str, str]:
    """SHA-256 of each file of a version but its manifest, by path or URI."""
    files = {shard.name: shard.sha256 for shard in manifest.shards} | manifest.files
    return {join(folder, name): digest for name, digest in files.items()}


def previous_pairs(
    shard: str | None, previous: PublishedShards
) -> Iterator[tuple[str, ProcessedPair]]:
    """Pairs of an earlier version that need not be read again, by id; none if it is damaged.

    Args:
        shard: name of the shard whose records are yielded; None for the rejects that the content
            of their files explains.
    """
    sources = join(previous.folder, SOURCES)
    try:
        if not read_footer(sources).schema.to_arrow_schema().equals(SOURCES_SCHEMA):
            return
        if shard and not _is_intact(shard, previous):
            return
        of_shard = pc.field("shard") == shard if shard else pc.field("shard").is_null()
        table = read_table(sources, columns=SOURCES_SCHEMA.names, filters=of_shard)
    except (OSError, ValueError):
        return
    for row in rows_of(table):
        if row.shard and row.offset is not None and row.length is not None:
            file = join(previous.folder, row.shard)
            yield row.id, ProcessedPair(row, RecordRef(file, row.offset, row.length))
        elif row.reject_code and row.reject_code not in TRANSIENT_CODES | REDUNDANT_CODES:
            yield row.id, ProcessedPair(row, None)


def _is_intact(shard: str, previous: PublishedShards) -> bool:
    (digest,) = (one.sha256 for one in previous.shards.values() if one.name == shard)
    place = join(previous.folder, shard)
    return bool(intact_files({place: digest}, join(previous.folder, MANIFEST)))
