"""Checks a dataset's splits before it is published: none empty, few leaks; a picture of leaks."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from beam.ingest.doubt_report import pictures_of
from beam.ingest.near_duplicates import RemainingLeaks
from beam.ingest.records import given_split
from beam.ingest.split_rules import wanted_splits
from images.panels import PanelRow, overlay, panel
from runtime.command_line import log
from runtime.errors import UserError
from runtime.parquet import read_table
from runtime.storage import join
from schemas.classes import Taxonomy
from schemas.config import IngestConfig
from schemas.layout import SOURCES, SPLITS
from schemas.manifest import Manifest
from schemas.pair_list import read_pair_list


def check_splits(manifest: Manifest, staged: str) -> None:
    """Refuses a dataset with an empty split, or with more leaks than the config allows.

    Raises:
        UserError: names the options that help.
    """
    config = manifest.config
    empty = [split for split in wanted_splits(config) if not manifest.splits[split].records]
    if empty:
        sources = read_table(join(staged, SOURCES), columns=["id", "group", "shard"])
        records = sources.filter(pc.is_valid(sources["shard"]))
        groups = pc.count_distinct(records["group"]).as_py()
        raise UserError(
            f"split {' and '.join(empty)} would be empty: {manifest.records} images make "
            f"{groups} {_groups(config)}; {_advice(config, empty, records)}; "
            "nothing was published"
        )
    near = manifest.near_duplicates
    evaluation = sum(manifest.splits[split].records for split in ("validation", "test"))
    if near is None or near.evaluation_images <= config.max_leak * evaluation:
        return
    if config.given_splits == "keep" and not config.max_leak:
        # These leaks are between given splits; the data card reports them.
        return
    for one, other in near.examples:
        log(f"{'':10}{one} nearly shows what {other} shows")
    raise UserError(
        f"{near.evaluation_images} of {evaluation} evaluation images have a near-duplicate in "
        f"another split ({near.pairs_across_splits} pairs), more than --max_leak="
        f"{config.max_leak:g}; nothing was published; {_less_leak(config)}"
    )


def draw_leaks(
    shards: str, sources: Path, remaining: RemainingLeaks, taxonomy: Taxonomy
) -> Image.Image:
    """The pictures of a few near-duplicates in different splits, side by side.

    Args:
        shards: folder of the dataset's shards; sources: its table of sources.
    """
    ids = sorted({sample_id for pair in remaining.examples for sample_id in pair})
    sources_by_id = {
        row["id"]: row for row in read_table(sources, filters=[("id", "in", ids)]).to_pylist()
    }
    rows = []
    for pair in remaining.examples:
        one, other = (sources_by_id[sample_id] for sample_id in pair)
        image, mask = pictures_of(shards, one)
        other_image, other_mask = pictures_of(shards, other)
        caption = f"{one['split']}  {one['id']}   {other['split']}  {other['id']}"
        overlays = overlay(image, mask, taxonomy), overlay(other_image, other_mask, taxonomy)
        rows.append(PanelRow(caption, image, [other_image, *overlays]))
    return panel(rows, ["one", "other", "one with mask", "other with mask"], taxonomy)


def _less_leak(config: IngestConfig) -> str:
    if not config.max_leak:
        return "--given_splits keep publishes them as they are, ignore splits anew"
    return "--max_leak 0 leaves out what leaks, unless its split is given"


def _groups(config: IngestConfig) -> str:
    if config.group:
        return f"groups by --group {config.group!r}"
    return {
        "block": f"groups, blocks of --block_length {config.block_length}",
        "folder": "groups, folders, by --split_by folder",
        "image": "groups, images, by --split_by image",
    }[config.split_by]


def _has_given_splits(records: pa.Table, config: IngestConfig) -> bool:
    """Whether folders or a list give splits."""
    if config.given_splits == "ignore":
        return False
    if config.pairs and any(pair.split for pair in read_pair_list(config.pairs)):
        return True
    return any(map(given_split, records["id"].to_pylist()))


def _advice(config: IngestConfig, empty: list[str], records: pa.Table) -> str:
    """The options with which no split would be empty."""
    options = []
    given = _has_given_splits(records, config)
    shorter = min(config.block_length - 1, records.num_rows // 6)
    if given:
        options.append("--given_splits ignore does not use the splits that folders or a list give")
    elif config.group:
        options.append("another --group makes more groups")
    elif config.split_by == "folder":
        options.append("--split_by block makes more groups")
    elif config.split_by == "block" and shorter > 0:
        options.append(f"--block_length {shorter} makes more groups")
    if "train" not in empty or not given:
        # Images whose splits are not given are then all for train.
        without = SPLITS[1:] if "train" in empty else empty
        options.append(" ".join(f"--{split} 0" for split in without) + " does without")
    return " or ".join(options) or "more images are needed"
