"""The doubtful pairs of a dataset: found, drawn in the data card, and refused if they are many."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from beam.doubts import (
    CONSTANT_IMAGE,
    CONSTANT_MASK,
    EDGES,
    IMAGE_IS_MASK,
    DoubtTotal,
    channels_swapped,
    edges_disagree,
)
from beam.record_files import RecordRef, read_frames, unframe
from beam.records import decoded
from schemas.classes import Taxonomy, UInt8Array
from schemas.cli import say
from schemas.errors import UserError
from schemas.example import parse
from schemas.layout import SOURCES
from schemas.manifest import Manifest
from schemas.parquet import read_table
from schemas.picture import PanelRow, overlay, panel
from schemas.storage import join

SAME_PICTURE = "same_picture"

MEANING = {
    CONSTANT_IMAGE: "the image shows nothing",
    CONSTANT_MASK: "the mask has one class only",
    IMAGE_IS_MASK: "the image is a drawing of its mask",
    EDGES: "the mask's edges are not where the image's are, as in a sequence shifted by one frame",
    SAME_PICTURE: "the same picture has several ids",
}

_EXAMPLES = 4
"""Pairs that the card draws, and a failed job prints, for each doubt."""


def with_same_pictures(sources: pa.Table) -> pa.Table:
    """The table of a dataset's sources, where pairs whose pictures are equal are doubtful too."""
    pictures = sources["picture"]
    counts = pc.value_counts(pictures.drop_null())
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    # A row of an earlier version says what was true then.
    own = pc.replace_substring_regex(sources["doubts"], f",?{SAME_PICTURE}$", "")
    joined = pc.binary_join_element_wise(own, SAME_PICTURE, ",")
    both = pc.if_else(pc.equal(own, ""), SAME_PICTURE, joined)
    marked = pc.if_else(pc.is_in(pictures, repeated), both, own)
    place = sources.schema.get_field_index("doubts")
    return sources.set_column(place, sources.schema.field(place), marked)


def count_doubts(sources: pa.Table) -> tuple[int, dict[str, int]]:
    """Number of records with any doubt, and with each."""
    found = pc.value_counts(sources["doubts"].drop_null()).to_pylist()
    doubtful = {one["values"]: one["counts"] for one in found if one["values"]}
    counts = {
        code: sum(count for codes, count in doubtful.items() if code in codes.split(","))
        for code in MEANING
    }
    return sum(doubtful.values()), {code: count for code, count in counts.items() if count}


def doubts_of_all(sources: pa.Table) -> list[str]:
    """Warnings on a dataset as a whole."""
    records = sources.filter(pc.is_valid(sources["cells"]))
    cells, agreeing, tilt = (
        pc.sum(records[name]).as_py() or 0 for name in ("cells", "agreeing", "blue_tilt")
    )
    total = DoubtTotal(records.num_rows, cells, agreeing, tilt)
    warnings = []
    if edges_disagree(total):
        warnings.append(
            f"edges of image and mask agree in {total.agreement:.0%} of the places compared, where "
            "right pairs have 70% and more: masks of other images, or imprecise ones"
        )
    if channels_swapped(total):
        warnings.append(
            "the lower parts of the images are bluer than the upper parts, as if red and blue were "
            "swapped: if they are, pass --image_channels bgr"
        )
    return warnings


def check_doubts(manifest: Manifest, staged: str) -> None:
    """Refuses a dataset with too many doubtful pairs, and shows which and why.

    Raises:
        UserError: names the share, the bound and the count of each doubt.
    """
    share = manifest.doubtful / max(1, manifest.records)
    bound = manifest.config.max_doubtful_fraction
    if share <= bound:
        return
    sources = read_table(join(staged, SOURCES), columns=["id", "image_path", "picture", "doubts"])
    for code, rows in _examples(sources).items():
        say(f"{manifest.doubts[code]:>8,}  {code}: {MEANING[code]}")
        for row in rows:
            say(f"{'':10}{join(manifest.source, row['image_path'])}")
    counts = ", ".join(f"{count} {code}" for code, count in manifest.doubts.items())
    raise UserError(
        f"{share:.1%} of the pairs are doubtful ({counts}), more than "
        f"--max_doubtful_fraction={bound}; nothing was published; if they are right, name a larger "
        "fraction"
    )


def draw_doubtful(shards: str, sources: pa.Table, taxonomy: Taxonomy) -> Image.Image:
    """Image, mask and both of a few pairs with each doubt.

    Args:
        shards: folder of the dataset's shards; sources: rows of its pairs.
    """
    chosen = [(code, row) for code, rows in _examples(sources).items() for row in rows]
    rows = []
    for code, row in chosen:
        image, mask = pictures_of(shards, row)
        rows.append(PanelRow(f"{code}  {row['id']}", image, [mask, overlay(image, mask, taxonomy)]))
    return panel(rows, ["image", "mask", "both"], taxonomy)


def _examples(sources: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """The first rows with each doubt; equal pictures follow each other."""
    found = {}
    for code in MEANING:
        rows = sources.filter(pc.match_substring_regex(sources["doubts"], rf"\b{code}\b"))
        if code == SAME_PICTURE:
            rows = rows.sort_by([("picture", "ascending"), ("id", "ascending")])
        if rows.num_rows:
            found[code] = rows.slice(0, _EXAMPLES).to_pylist()
    return found


def pictures_of(shards: str, row: dict[str, Any]) -> tuple[UInt8Array, UInt8Array]:
    """Image (height, width, 3) and mask (height, width) of a record, from its shard.

    Args:
        shards: folder of the dataset's shards; row: of its table of sources.
    """
    ref = RecordRef(join(shards, row["shard"]), row["offset"], row["length"])
    return decoded(parse(unframe(ref, read_frames(ref))[0]))
