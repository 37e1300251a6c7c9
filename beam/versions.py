"""Published versions of a dataset, and whether one of them is still up to date."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from beam.record_files import RecordRef
from beam.records import LOSSLESS, TRANSIENT, Made, Recipe, recipe_of
from beam.source import source_of
from beam.staging import make_output, remove_dead_staging
from beam.survey import Survey, survey_pairs
from schemas import listing, storage
from schemas.cli import say
from schemas.config import IngestConfig
from schemas.errors import UserError
from schemas.layout import MANIFEST, SOURCES, version_name
from schemas.manifest import Manifest, ShardInfo, load_manifest
from schemas.parquet import read_footer, read_table
from schemas.sources import LISTING_KEY, rows_of
from schemas.sources import SOURCES as SOURCES_SCHEMA
from schemas.storage import join


@dataclass(frozen=True)
class PublishedShards:
    """A published version whose records and shards may be reused."""

    folder: str
    shards: dict[str, ShardInfo]
    """The shards by the hash of their sources."""

    @classmethod
    def of(cls, folder: str, manifest: Manifest) -> PublishedShards:
        """The shards of the dataset version in ``folder``."""
        return cls(folder, {shard.source_sha256: shard for shard in manifest.shards})


@dataclass(frozen=True)
class Start:
    """What an ingest knows before it reads any file.

    Attributes:
        datasets: folder of the dataset's versions.
        survey: of the source.
        published: versions made by the same recipe, newest first.
    """

    recipe: Recipe
    datasets: str
    survey: Survey
    published: list[tuple[str, Manifest]]


def look(source: str, output: str, config: IngestConfig) -> Start:
    """Lists the source and the published versions.

    Raises:
        UserError: there is nothing to read, or the output cannot be written.
    """
    recipe = recipe_of(source, config)
    storage.require_folder(recipe.source, "source")
    datasets = join(make_output(output), config.name)
    survey = survey_pairs(source_of(source, config))
    return Start(recipe, datasets, survey, published_versions(datasets, recipe))


def unchanged(start: Start) -> str | None:
    """Folder of the version that a run would publish again, after verifying it; or None."""
    for folder, manifest in start.published:
        if is_unchanged(folder, manifest, start.survey.digest):
            # A job that was killed just after publishing may have left its staging folder.
            remove_dead_staging(start.datasets)
            say(f"nothing has changed: {manifest.records} records, all checksums verified")
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
        if made_by == recipe:
            versions.append((storage.modified(join(folder, MANIFEST)), folder, manifest))
    return [(folder, manifest) for _, folder, manifest in sorted(versions, reverse=True)]


def place_of(datasets: str, manifest: Manifest) -> str:
    """The folder of a version; pairs with the same bytes from another source keep theirs."""
    name = version_name(manifest.fingerprint)
    with suppress(UserError):
        if load_manifest(join(datasets, name)).source != manifest.source:
            name += f"-{storage.sha256(manifest.source.encode())[:6]}"
    return join(datasets, name)


def is_unchanged(folder: str, manifest: Manifest, listing: str) -> bool:
    """True if a run would publish the same files: same listing, and all checksums match."""
    if TRANSIENT & manifest.rejects.keys():
        return False
    try:
        if read_footer(join(folder, SOURCES)).metadata[LISTING_KEY] != listing.encode():
            return False
        expected = {shard.name: shard.sha256 for shard in manifest.shards} | manifest.files
        with ThreadPoolExecutor() as pool:
            digests = list(pool.map(storage.file_sha256, [join(folder, name) for name in expected]))
    except (OSError, KeyError, TypeError, ValueError):
        return False
    return digests == list(expected.values())


def known_pairs(previous: PublishedShards | None) -> Iterator[tuple[str, Made]]:
    """Pairs of an earlier version that need no reading, by id; none if its table is damaged.

    They are records whose shards are intact, and rejects for what their files contain.
    """
    if previous is None:
        return
    try:
        table = read_table(join(previous.folder, SOURCES), columns=SOURCES_SCHEMA.names)
    except (OSError, ValueError):
        return
    if not table.schema.equals(SOURCES_SCHEMA):
        return
    intact = _intact(previous)
    for row in rows_of(table):
        if row.shard in intact and row.offset is not None and row.length is not None:
            file = join(previous.folder, row.shard)
            yield row.id, Made(row, RecordRef(file, row.offset, row.length))
        elif row.reject_code and row.reject_code not in TRANSIENT | LOSSLESS:
            yield row.id, Made(row, None)


def _intact(previous: PublishedShards) -> set[str]:
    """Names of the shards whose checksums match."""

    def matches(shard: ShardInfo) -> bool:
        try:
            return storage.file_sha256(join(previous.folder, shard.name)) == shard.sha256
        except OSError:
            return False

    shards = list(previous.shards.values())
    found = storage.each(matches, shards)
    return {shard.name for shard, fine in zip(shards, found, strict=True) if fine}
