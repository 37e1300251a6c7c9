"""Published versions of a dataset, and whether one of them still is what a run would make."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from beam import pairing, storage
from beam.metadata import LISTING_KEY
from beam.pairing import Candidate
from beam.records import TRANSIENT, Recipe
from beam.tfrecords import Previous
from schemas.errors import UserError
from schemas.layout import MANIFEST, SOURCES
from schemas.manifest import Manifest, load_manifest
from schemas.sources import SourceRow, rows_of


@dataclass(frozen=True)
class Survey:
    """What lies below a source, from its listing alone.

    Attributes:
        images, masks: PNG files in camera folders.
        loose_pngs: PNG files outside of them.
        digest: of path, size and time of change of all files that count, in any order.
    """

    images: int
    masks: int
    loose_pngs: int
    digest: str


def survey(source: str) -> Survey:
    """Lists a source once, one file at a time."""
    found = {True: 0, False: 0}
    loose = 0
    total = 0
    for file in storage.walk(source):
        one = pairing.candidate(file)
        if isinstance(one, Candidate):
            found[one.is_mask] += 1
        elif one is None:
            if not pairing.is_png(file.path):
                continue
            loose += 1
        text = f"{file.path}\0{file.size}\0{file.modified}"
        total += int.from_bytes(hashlib.blake2b(os.fsencode(text), digest_size=16).digest())
    return Survey(found[False], found[True], loose, f"{total % 2**128:032x}")


def survey_pairs(source: str) -> Survey:
    """Lists a source that holds pairs.

    Raises:
        UserError: there is no image, or no mask, in any camera folder.
    """
    found = survey(source)
    if not found.images or not found.masks:
        folders = " or ".join(sorted(pairing.MASK_FOLDERS))
        raise UserError(
            f"source {source!r} holds no pairs: found {found.images} PNG images and {found.masks} "
            f"masks; expected a CameraRGB folder beside a {folders} folder, at any depth"
        )
    return found


def published_versions(datasets: Path, recipe: Recipe) -> list[tuple[Path, Manifest]]:
    """Versions made by the same recipe, the newest first; unreadable ones are passed over."""
    versions = []
    for path in datasets.glob(f"[!.]*/{MANIFEST}"):
        try:
            manifest = load_manifest(path.parent)
        except UserError:
            continue
        made_by = Recipe(manifest.source, manifest.config, manifest.taxonomy)
        if made_by == recipe:
            versions.append((path.stat().st_mtime, path.parent, manifest))
    return [(folder, manifest) for _, folder, manifest in sorted(versions, reverse=True)]


def is_unchanged(folder: Path, manifest: Manifest, listing: str) -> bool:
    """True where a run would publish the very same files: same listing, all checksums right."""
    if TRANSIENT & manifest.rejects.keys():
        return False
    try:
        if pq.read_schema(folder / SOURCES).metadata[LISTING_KEY] != listing.encode():
            return False
        expected = {shard.name: shard.sha256 for shard in manifest.shards} | manifest.files
        with ThreadPoolExecutor() as pool:
            digests = list(pool.map(storage.file_sha256, [folder / name for name in expected]))
    except (OSError, KeyError, TypeError, ValueError):
        return False
    return digests == list(expected.values())


def known_rows(previous: Previous | None) -> Iterator[tuple[str, SourceRow]]:
    """Rows of an earlier version by id; none where its table is missing or damaged."""
    if previous is None:
        return
    try:
        rows = rows_of(pq.read_table(Path(previous.folder, SOURCES)))
    except (OSError, ValueError, TypeError):
        return
    for row in rows:
        yield row.id, row
