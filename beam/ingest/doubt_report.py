"""Doubtful pairs of a dataset: counts and examples, a picture for the data card, an upper bound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from beam.ingest.doubts import (
    CONSTANT_IMAGE,
    CONSTANT_MASK,
    EDGES,
    IMAGE_IS_MASK,
    DoubtTotal,
    channels_swapped,
    edges_disagree,
)
from beam.ingest.record_files import RecordRef, read_frames, unframe
from beam.ingest.records import decode_example
from images.panels import PanelRow, overlay, panel
from runtime.command_line import log
from runtime.errors import UserError
from runtime.parquet import batches
from runtime.storage import join
from schemas.classes import Taxonomy, UInt8Array
from schemas.example import parse
from schemas.layout import SOURCES
from schemas.manifest import Manifest

SAME_PICTURE = "same_picture"

MEANING = {
    CONSTANT_IMAGE: "the image shows nothing",
    CONSTANT_MASK: "the mask has one class only",
    IMAGE_IS_MASK: "the image is a drawing of its mask",
    EDGES: "the mask's edges are not where the image's are, as in a sequence shifted by one frame",
    SAME_PICTURE: "the same picture has several ids",
}

_EXAMPLES = 4
"""Number of pairs that the card draws, and a failed job prints, for each doubt."""

_SUMMED = ("cells", "agreeing", "blue_tilt")
_BATCH = 10_000


def with_same_pictures(sources: pa.Table, repeated: pa.Array) -> pa.Table:
    """Rows of a dataset's sources with the doubt ``same_picture`` on pairs with equal pictures.

    Args:
        repeated: hashes of the pictures that occur in several records.
    """
    # A row that is reused may have the doubt from an earlier version.
    own = pc.replace_substring_regex(sources["doubts"], f",?{SAME_PICTURE}$", "")
    joined = pc.binary_join_element_wise(own, SAME_PICTURE, ",")
    both = pc.if_else(pc.equal(own, ""), SAME_PICTURE, joined)
    marked = pc.if_else(pc.is_in(sources["picture"], repeated), both, own)
    place = sources.schema.get_field_index("doubts")
    return sources.set_column(place, sources.schema.field(place), marked)


class Doubts:
    """Sums and examples of a dataset's doubts, collected over the tables of its sources.

    Attributes:
        pairs: number of records with any doubt.
        examples: the first few rows with each doubt; equal pictures are next to each other.
    """

    def __init__(self) -> None:
        self.pairs = 0
        self.examples: dict[str, list[dict[str, Any]]] = {code: [] for code in MEANING}
        self._codes: Counter[str] = Counter()
        self._total = DoubtTotal()

    def add(self, sources: pa.Table) -> None:
        """Adds rows of a dataset's sources."""
        records = sources.filter(pc.is_valid(sources["doubts"]))
        for entry in pc.value_counts(records["doubts"]).to_pylist():
            codes, count = entry["values"], entry["counts"]
            if codes:
                self.pairs += count
                self._codes.update(dict.fromkeys(codes.split(","), count))
        for code in MEANING:
            rows = records.filter(pc.match_substring_regex(records["doubts"], rf"\b{code}\b"))
            order = ["picture", "id"] if code == SAME_PICTURE else ["id"]
            first = rows.sort_by([(name, "ascending") for name in order]).slice(0, _EXAMPLES)
            rows = sorted([*self.examples[code], *first.to_pylist()], key=itemgetter(*order))
            self.examples[code] = rows[:_EXAMPLES]
        sums = (pc.sum(records[name]).as_py() or 0 for name in _SUMMED)
        self._total += DoubtTotal(records.num_rows, *sums)

    def counts(self) -> dict[str, int]:
        """Number of records with each doubt."""
        return {code: self._codes[code] for code in MEANING if self._codes[code]}

    def warnings(self) -> list[str]:
        """Warnings on the dataset as a whole."""
        warnings = []
        if edges_disagree(self._total):
            warnings.append(
                f"edges of image and mask agree in {self._total.agreement:.0%} of the places "
                "compared, where right pairs have 70% and more: masks of other images, or "
                "imprecise ones"
            )
        if channels_swapped(self._total):
            warnings.append(
                "the lower parts of the images are bluer than the upper parts, as if red and blue "
                "were swapped: if they are, pass --image_channels bgr"
            )
        return warnings


def check_doubts(manifest: Manifest, staged: str) -> None:
    """Refuses a dataset with too many doubtful pairs; prints examples.

    Raises:
        UserError: names the share, the bound and the count of each doubt.
    """
    share = manifest.doubtful / max(1, manifest.records)
    bound = manifest.config.max_doubtful_fraction
    if share <= bound:
        return
    doubts = Doubts()
    columns = ["id", "image_path", "picture", "doubts", *_SUMMED]
    for batch in batches(join(staged, SOURCES), _BATCH, columns):
        doubts.add(pa.Table.from_batches([batch]))
    for code, count in manifest.doubts.items():
        log(f"{count:>8,}  {code}: {MEANING[code]}")
        for row in doubts.examples[code]:
            log(f"{'':10}{join(manifest.source, row['image_path'])}")
    counts = ", ".join(f"{count} {code}" for code, count in manifest.doubts.items())
    raise UserError(
        f"{share:.1%} of the pairs are doubtful ({counts}), more than "
        f"--max_doubtful_fraction={bound}; nothing was published; if they are right, name a larger "
        "fraction"
    )


def draw_doubtful(
    shards: str, examples: Mapping[str, Sequence[dict[str, Any]]], taxonomy: Taxonomy
) -> Image.Image:
    """Image, mask and overlay of a few pairs with each doubt.

    Args:
        shards: folder of the dataset's shards; examples: rows of its sources by doubt.
    """
    rows = []
    for code, sources in examples.items():
        for row in sources:
            image, mask = pictures_of(shards, row)
            drawn = [mask, overlay(image, mask, taxonomy)]
            rows.append(PanelRow(f"{code}  {row['id']}", image, drawn))
    return panel(rows, ["image", "mask", "both"], taxonomy)


def pictures_of(shards: str, row: dict[str, Any]) -> tuple[UInt8Array, UInt8Array]:
    """Image (height, width, 3) and mask (height, width) of a record, from its shard.

    Args:
        shards: folder of the dataset's shards; row: of its table of sources.
    """
    ref = RecordRef(join(shards, row["shard"]), row["offset"], row["length"])
    return decode_example(parse(unframe(ref, read_frames(ref))[0]))
