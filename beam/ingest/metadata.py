"""Dataset metadata: manifest, tables of sources and rejects, data card, and two files for TFDS."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from beam.ingest.card import DOUBTFUL_PICTURE, LEAKS_PICTURE, write_card
from beam.ingest.dataset_warnings import (
    class_warnings,
    group_warnings,
    leak_warnings,
    position_warnings,
)
from beam.ingest.doubt_report import Doubts, draw_doubtful, with_same_pictures
from beam.ingest.near_duplicates import NEAR_DUPLICATE_BITS, RemainingLeaks
from beam.ingest.records import Recipe
from beam.ingest.reject_files import RejectFile
from beam.ingest.split_checks import draw_leaks
from beam.shared.atomic_writes import atomic_files
from runtime.parquet import read_table
from runtime.storage import file_sha256, join
from schemas.example import FEATURES
from schemas.layout import MANIFEST, REJECTS, SOURCES, SPLITS
from schemas.manifest import Manifest, NearDuplicates, ShardInfo, SplitInfo
from schemas.prediction import REJECTS as REJECTS_SCHEMA
from schemas.sources import LISTING_KEY
from schemas.sources import SOURCES as SOURCES_SCHEMA
from schemas.stats import PixelStats

_IDENTITY = ("id", "image_sha256", "mask_sha256", "split")
_ROW_GROUP = 100_000


def write_metadata(
    folder: str,
    recipe: Recipe,
    listing: str,
    rows_folder: str,
    shards: Sequence[ShardInfo],
    left_out: Sequence[RejectFile],
    repeated: Iterable[str],
    groups: Mapping[str, int],
    files: Mapping[str, int],
    leaks: Iterable[RemainingLeaks],
) -> Manifest:
    """Writes all metadata of a dataset whose shards are in ``folder``, one shard's rows at a time.

    Args:
        listing: digest of the source's listing, by which a later run sees that nothing changed.
        rows_folder: unpublished folder of the Parquet files with the rows of each shard.
        left_out: files with the rows of all rejects.
        repeated: hashes of the pictures that occur in several records.
        groups: number of groups of images by split.
        files: number of files skipped, by reason; under "", the number of all files.
        leaks: partial sums of the leaks that stay.

    Raises:
        RuntimeError: a listed file is neither in a record, nor rejected, nor skipped.
    """
    remaining = RemainingLeaks.sum(leaks)
    shards = sorted(shards, key=lambda shard: (SPLITS.index(shard.split), shard.name))
    left_out = sorted(left_out)
    with atomic_files(folder, rows_folder, MANIFEST) as target:
        contents = DatasetContents(recipe, frozenset(repeated))
        places = [join(rows_folder, f"{shard.name}.parquet") for shard in shards]
        sources = map(read_table, [*places, *(file.sources for file in left_out)])
        schema = SOURCES_SCHEMA.with_metadata({LISTING_KEY: listing})
        _write_table(target / SOURCES, schema, map(contents.add, sources))
        rejects = map(read_table, [file.rejects for file in left_out])
        _write_table(target / REJECTS, REJECTS_SCHEMA, map(contents.add_rejects, rejects))
        manifest = make_manifest(recipe, shards, contents, left_out, groups, files, remaining)
        check_file_counts(manifest, left_out)
        write_json(target / "features.json", tfds_features(recipe))
        write_json(target / "dataset_info.json", tfds_info(manifest))
        write_card(target, manifest, folder)
        if manifest.doubtful:
            picture = draw_doubtful(folder, contents.doubts.examples, recipe.taxonomy)
            picture.save(target / DOUBTFUL_PICTURE, compress_level=3)
        if remaining.pairs:
            picture = draw_leaks(folder, target / SOURCES, remaining, recipe.taxonomy)
            picture.save(target / LEAKS_PICTURE, compress_level=3)
        digests = {path.name: file_sha256(path) for path in sorted(target.iterdir())}
        manifest = manifest.model_copy(update={"files": digests})
        (target / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return manifest


class DatasetContents:
    """Fingerprint and doubts of a dataset, accumulated while its tables are written.

    Attributes:
        doubts: the doubtful pairs.
    """

    def __init__(self, recipe: Recipe, repeated: frozenset[str]) -> None:
        self.doubts = Doubts()
        self._source = recipe.source
        self._repeated = pa.array(sorted(repeated), pa.string())
        self._digest = hashlib.sha256(recipe.sha256().encode())

    def add(self, rows: pa.Table) -> pa.Table:
        """Adds rows of pairs; returns them with the doubts that depend on other pairs."""
        rows = with_same_pictures(rows, self._repeated)
        self.doubts.add(rows)
        columns = [rows[name].to_pylist() for name in _IDENTITY]
        for values in zip(*columns, strict=True):
            self._digest.update(("\n" + "\0".join(map(str, values))).encode())
        return rows

    def add_rejects(self, rejects: pa.Table) -> pa.Table:
        """Adds rows of rejects, and returns them."""
        for row in rejects.select(["source_uri", "code"]).to_pylist():
            path = row["source_uri"].removeprefix(f"{self._source}/")
            self._digest.update(f"\n{path}\0{row['code']}".encode())
        return rejects

    def fingerprint(self) -> str:
        """The dataset's identity: a hash of recipe, ids, source hashes, splits and rejects.

        It has 32 hex digits, because MLflow accepts digests of at most 36 characters.
        """
        return self._digest.hexdigest()[:32]


def _write_table(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Writes tables to one file, each in its own row groups, by which readers find a shard."""
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in tables:
            # Hugging Face's reader fails on a row group without rows.
            if not table.num_rows:
                continue
            writer.write_table(table.cast(schema), row_group_size=_ROW_GROUP)


def check_file_counts(manifest: Manifest, left_out: Sequence[RejectFile]) -> None:
    """Checks that every listed file is in a record, in a reject or skipped for a reason.

    Raises:
        RuntimeError: they do not add up.
    """
    skipped = sum(manifest.skipped.values())
    pairs, files = sum(one.pairs for one in left_out), sum(one.files for one in left_out)
    expected = 2 * (manifest.records + pairs) + files + skipped
    if manifest.files_listed != expected:
        raise RuntimeError(
            f"{manifest.files_listed} files were listed, but {expected} are accounted for: "
            f"{manifest.records} pairs in records, {pairs} pairs and {files} files rejected, "
            f"{skipped} skipped; nothing is published"
        )


def make_manifest(
    recipe: Recipe,
    shards: Sequence[ShardInfo],
    contents: DatasetContents,
    left_out: Sequence[RejectFile],
    groups: Mapping[str, int],
    files: Mapping[str, int],
    remaining: RemainingLeaks,
) -> Manifest:
    """The manifest of a dataset but for its ``files``, whose hashes are not known yet.

    Args:
        shards: in the order of their names.
    """
    taxonomy, config = recipe.taxonomy, recipe.config
    stats = {split: PixelStats.zero(len(taxonomy)) for split in SPLITS}
    for shard in shards:
        stats[shard.split] += PixelStats.from_json(shard.stats)
    splits = {
        split: SplitInfo(
            records=sum(shard.records for shard in shards if shard.split == split),
            bytes=sum(shard.bytes for shard in shards if shard.split == split),
            class_pixels=dict(
                zip(taxonomy.names, map(int, stats[split].class_pixels), strict=True)
            ),
            void_pixels=stats[split].void_pixels,
            groups=groups.get(split, 0),
        )
        for split in SPLITS
    }
    train = stats["train"]
    rejects = sum((Counter(one.codes) for one in left_out), Counter[str]())
    return Manifest(
        name=config.name,
        fingerprint=contents.fingerprint(),
        made_with=recipe.made_with,
        source=recipe.source,
        config=config,
        taxonomy=taxonomy,
        taxonomy_sha256=taxonomy.sha256,
        splits=splits,
        channel_mean=train.channel_mean(),
        channel_std=train.channel_std(),
        class_weights=dict(zip(taxonomy.names, train.class_weights(), strict=True)),
        near_duplicates=NearDuplicates(
            max_distance=NEAR_DUPLICATE_BITS,
            pairs_across_splits=remaining.pairs,
            images_across_splits=remaining.images,
            evaluation_images=remaining.evaluation,
            frames_beside=remaining.beside,
            examples=list(remaining.examples),
        ),
        rejects=dict(sorted(rejects.items())),
        doubtful=contents.doubts.pairs,
        doubts=contents.doubts.counts(),
        files_listed=files.get("", 0),
        skipped={reason: count for reason, count in sorted(files.items()) if reason},
        warnings=[
            *group_warnings(splits),
            *class_warnings(stats, recipe),
            *leak_warnings(remaining),
            *contents.doubts.warnings(),
            *position_warnings(stats, recipe),
        ],
        shards=list(shards),
    )


def tfds_info(manifest: Manifest) -> dict[str, Any]:
    """Content of ``dataset_info.json``, by which ``tfds.builder_from_directory`` opens a folder."""
    return {
        "name": manifest.name,
        "version": "1.0.0",
        "description": f"Image/mask pairs, taxonomy {manifest.taxonomy.name}, "
        f"fingerprint {manifest.fingerprint}.",
        "moduleName": "beam.ingest",
        "fileFormat": "tfrecord",
        "splits": [
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": str(info.bytes),
                "shardLengths": [
                    str(shard.records) for shard in manifest.shards if shard.split == split
                ],
            }
            for split, info in manifest.splits.items()
            if info.records
        ],
    }


def tfds_features(recipe: Recipe) -> dict[str, Any]:
    """Content of ``features.json``: how TFDS decodes each feature of the Example."""
    prefix = "tensorflow_datasets.core.features"
    height, width = (str(size or -1) for size in (recipe.config.height, recipe.config.width))

    def image(channels: int) -> dict[str, Any]:
        return {
            "pythonClassName": f"{prefix}.image_feature.Image",
            "image": {
                "dtype": "uint8",
                "encodingFormat": "png",
                "shape": {"dimensions": [height, width, str(channels)]},
            },
        }

    scalar = {
        "pythonClassName": f"{prefix}.scalar.Scalar",
        "tensor": {"shape": {}, "dtype": "int64", "encoding": "none"},
    }
    text = {"pythonClassName": f"{prefix}.text_feature.Text", "text": {}}
    features = {name: scalar if kind == "int" else text for name, kind in FEATURES.items()}
    return {
        "pythonClassName": f"{prefix}.features_dict.FeaturesDict",
        "featuresDict": {"features": {**features, "image": image(3), "mask": image(1)}},
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes indented JSON with sorted keys."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
