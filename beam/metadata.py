"""The files beside the shards: manifest, rejects, sources, data card, and two files for TFDS."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from beam.attempts import whole_files
from beam.card import DOUBTFUL_PICTURE, LEAKS_PICTURE, write_card
from beam.doubtful import count_doubts, doubts_of_all, draw_doubtful, with_same_pictures
from beam.leaks import NEAR_DUPLICATE_BITS, Remaining
from beam.pairing import Reject
from beam.records import LOSSLESS, Recipe
from beam.split_checks import draw_leaks
from beam.splitting import wanted_splits
from schemas.example import FEATURES
from schemas.layout import MANIFEST, REJECTS, SOURCES, SPLITS
from schemas.manifest import FEW_GROUPS, Manifest, NearDuplicates, ShardInfo, SplitInfo
from schemas.parquet import read_table
from schemas.prediction import REJECTS as REJECTS_SCHEMA
from schemas.sources import LISTING_KEY, SourceRow, source_table
from schemas.sources import SOURCES as SOURCES_SCHEMA
from schemas.stats import PixelStats
from schemas.storage import file_sha256, join

_HALF_SHARE = 0.35
_COMMON_CLASS = 0.01


def write_metadata(
    folder: str,
    recipe: Recipe,
    listing: str,
    rows_folder: str,
    shards: Sequence[ShardInfo],
    left_out: Iterable[SourceRow],
    unpaired: Iterable[Reject],
    files: Mapping[str, int],
    leaks: Iterable[Remaining],
) -> Manifest:
    """Writes all metadata of a dataset whose shards are in ``folder``.

    Args:
        listing: digest of the source's listing, by which a later run sees that nothing changed.
        rows_folder: folder of the Parquet files with the rows of each shard; not published.
        left_out: rows of pairs that have no record.
        files: number of files that were listed, under "", and of those skipped, by reason.
        leaks: parts of what leaks between splits that were given.

    Raises:
        RuntimeError: the files do not add up: one is neither in a record nor accounted for.
    """
    parts = [read_table(join(rows_folder, f"{shard.name}.parquet")) for shard in shards]
    remaining = Remaining.sum(leaks)
    rows = list(left_out)
    alone = list(unpaired)
    rejects = sorted(
        [*alone, *(_reject(row) for row in rows)], key=lambda one: (one.path, one.code)
    )
    everything = pa.concat_tables([SOURCES_SCHEMA.empty_table(), *parts, source_table(rows)])
    sources = with_same_pictures(everything.sort_by("id").combine_chunks())
    manifest = make_manifest(recipe, shards, sources, rejects, files, remaining)
    account_for(manifest, len(rows), len(alone))
    with whole_files(folder, rows_folder, MANIFEST) as made:
        pq.write_table(
            sources.replace_schema_metadata({LISTING_KEY: listing}),
            made / SOURCES,
            compression="zstd",
            row_group_size=100_000,
        )
        pq.write_table(_reject_table(rejects, recipe.source), made / REJECTS, compression="zstd")
        write_json(made / "features.json", tfds_features(recipe))
        write_json(made / "dataset_info.json", tfds_info(manifest))
        write_card(made, manifest, folder)
        if manifest.doubtful:
            draw_doubtful(folder, sources, recipe.taxonomy).save(made / DOUBTFUL_PICTURE)
        if remaining.pairs:
            draw_leaks(folder, sources, remaining, recipe.taxonomy).save(made / LEAKS_PICTURE)
        digests = {path.name: file_sha256(path) for path in sorted(made.iterdir())}
        manifest = manifest.model_copy(update={"files": digests})
        (made / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return manifest


def account_for(manifest: Manifest, pairs: int, alone: int) -> None:
    """Checks that every listed file is in a record, in a reject or skipped for a reason.

    Args:
        pairs: rejected pairs of two files; alone: rejected files.

    Raises:
        RuntimeError: they do not add up.
    """
    skipped = sum(manifest.skipped.values())
    expected = 2 * (manifest.records + pairs) + alone + skipped
    if manifest.files_listed != expected:
        raise RuntimeError(
            f"{manifest.files_listed} files were listed, but {expected} are accounted for: "
            f"{manifest.records} pairs in records, {pairs} pairs and {alone} files rejected, "
            f"{skipped} skipped; nothing is published"
        )


def make_manifest(
    recipe: Recipe,
    shards: Sequence[ShardInfo],
    sources: pa.Table,
    rejects: Sequence[Reject],
    files: Mapping[str, int],
    remaining: Remaining,
) -> Manifest:
    """The manifest of a dataset, derived from its parts; ``files`` is filled in later.

    Args:
        sources: rows of all pairs, ordered by id.
        rejects: ordered by path.
    """
    taxonomy, config = recipe.taxonomy, recipe.config
    ordered = sorted(shards, key=lambda shard: (SPLITS.index(shard.split), shard.name))
    stats = {split: PixelStats.zero(len(taxonomy)) for split in SPLITS}
    for shard in ordered:
        stats[shard.split] += PixelStats.from_json(shard.stats)
    groups = _groups(sources)
    splits = {
        split: SplitInfo(
            records=sum(shard.records for shard in ordered if shard.split == split),
            bytes=sum(shard.bytes for shard in ordered if shard.split == split),
            class_pixels=dict(
                zip(taxonomy.names, map(int, stats[split].class_pixels), strict=True)
            ),
            void_pixels=stats[split].void_pixels,
            groups=groups.get(split, 0),
        )
        for split in SPLITS
    }
    train = stats["train"]
    doubtful, doubts = count_doubts(sources)
    return Manifest(
        name=config.name,
        fingerprint=fingerprint(recipe, sources, rejects),
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
        rejects=dict(sorted(Counter(one.code for one in rejects).items())),
        doubtful=doubtful,
        doubts=doubts,
        files_listed=files.get("", 0),
        skipped={reason: count for reason, count in sorted(files.items()) if reason},
        warnings=[
            *group_warnings(splits),
            *class_warnings(stats, recipe),
            *leak_warnings(remaining),
            *doubts_of_all(sources),
            *position_warnings(sum(stats.values(), PixelStats.zero(len(taxonomy))), recipe),
        ],
        shards=ordered,
    )


def fingerprint(recipe: Recipe, sources: pa.Table, rejects: Sequence[Reject]) -> str:
    """The dataset's identity: a hash of recipe, ids, source hashes, splits and rejects.

    It has 128 bits in 32 hex digits, because MLflow accepts digests of at most 36 characters.
    """
    digest = hashlib.sha256(recipe.sha256().encode())
    columns = ["id", "image_sha256", "mask_sha256", "split"]
    for batch in sources.select(columns).to_batches():
        for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            digest.update(("\n" + "\0".join(map(str, values))).encode())
    for reject in rejects:
        digest.update(f"\n{reject.path}\0{reject.code}".encode())
    return digest.hexdigest()[:32]


def reject_fraction(manifest: Manifest) -> float:
    """Fraction of the inputs that were lost; good files left out for others are not counted."""
    lost = sum(count for code, count in manifest.rejects.items() if code not in LOSSLESS)
    return lost / max(1, lost + manifest.records)


def position_warnings(stats: PixelStats, recipe: Recipe) -> list[str]:
    """Warns of classes in the wrong half of the picture: the masks may use other class ids."""
    warnings = []
    total = max(1, int(stats.class_pixels.sum()))
    for label in recipe.taxonomy.classes:
        pixels = int(stats.class_pixels[label.id])
        if label.usually is None or pixels / total < _COMMON_CLASS:
            continue
        upper = int(stats.upper_pixels[label.id]) / pixels
        share = upper if label.usually == "upper" else 1 - upper
        if share < _HALF_SHARE:
            warnings.append(
                f"class {label.id} {label.name} should lie in the {label.usually} half of the "
                f"picture, but only {share:.0%} of its pixels do: the masks may use other "
                f"class ids than taxonomy {recipe.taxonomy.name}"
            )
    return warnings


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


def _reject(row: SourceRow) -> Reject:
    return Reject(
        row.id, str(row.reject_path), "check", str(row.reject_code), str(row.reject_message)
    )


def _groups(sources: pa.Table) -> dict[str, int]:
    """Number of groups by split."""
    counts = sources.group_by("split").aggregate([("group", "count_distinct")]).to_pylist()
    return {one["split"]: one["group_count_distinct"] for one in counts}


def group_warnings(splits: Mapping[str, SplitInfo]) -> list[str]:
    """Warns of a test split of few groups."""
    test = splits["test"]
    text = (
        f"test has {test.groups} groups of images that belong together, fewer than {FEW_GROUPS}: "
        "metrics on it say little of other places"
    )
    return [text] if test.records and test.groups < FEW_GROUPS else []


def class_warnings(stats: Mapping[str, PixelStats], recipe: Recipe) -> list[str]:
    """Warns of classes that a split lacks although train or another one has them."""
    every = sum(stats.values(), PixelStats.zero(len(recipe.taxonomy)))
    warnings = []
    for split in wanted_splits(recipe.config):
        absent = (stats[split].class_pixels == 0) & (every.class_pixels > 0)
        names = [label.name for label in recipe.taxonomy.classes if absent[label.id]]
        if names:
            warnings.append(
                f"{split} has no pixel of {', '.join(names)}: too few groups of images have it, "
                "so a metric of it says nothing; a smaller block_length makes more groups"
            )
    return warnings


def leak_warnings(remaining: Remaining) -> list[str]:
    """Warns of what leaks between splits: they were given, or max_leak allows it."""
    warnings = []
    if remaining.pairs:
        warnings.append(
            f"{remaining.pairs:,} pairs of near-duplicates lie in different splits: metrics on "
            f"their {remaining.evaluation:,} evaluation images are too good"
        )
    if remaining.beside:
        warnings.append(
            f"{remaining.beside:,} frames are next to one of another split in their sequence"
        )
    return warnings


def _reject_table(rejects: Sequence[Reject], source: str) -> pa.Table:
    rows = [(one.id, join(source, one.path), one.stage, one.code, one.message) for one in rejects]
    names = REJECTS_SCHEMA.names
    return pa.Table.from_pylist(
        [dict(zip(names, row, strict=True)) for row in rows], schema=REJECTS_SCHEMA
    )
