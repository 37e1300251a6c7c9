"""Summary of a run's predictions: a table of classes and a panel of example images."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from images.panels import PanelRow, panel
from images.png import NO_PIXEL_LIMIT, decode_own, decode_pixels
from runtime.mlflow_store import parse_model_uri
from runtime.parquet import read_footer, read_table
from schemas.example import Example, read_examples
from schemas.layout import partition_path
from schemas.manifest import Manifest, load_manifest
from schemas.published import files_of

_EXAMPLES = 4

_GROUP_COLUMNS = ["class_id", "class_name", "split"]
_SUMMED_COLUMNS = ("pixel_count", "intersection", "union")


@dataclass(frozen=True)
class ClassSummary:
    """One class over all images of a run.

    Attributes:
        pixel_share: share of all predicted pixels.
        iou: over the images of the test split, or over all images if there is no such split; None
            without ground truth or if the class does not occur.
        iou_over: ``test`` or ``all``.
    """

    class_name: str
    pixel_share: float
    iou: float | None
    iou_over: str


def partition_of(model_uri: str, source_name: str) -> str:
    """Partition of ``models:/<name>/<version>`` over a source."""
    name, version, _ = parse_model_uri(model_uri)
    return partition_path(name, f"v{version}", source_name)


def class_summary(predictions: str | Path, partition: str) -> list[ClassSummary]:
    """The classes of one partition of ``class_stats``, in the order of their ids."""
    sums: dict[tuple[int, str, str | None], Counter[str]] = defaultdict(Counter)
    # One file at a time: there may be millions of rows, and only a few sums are needed.
    for file in files_of(predictions, "class_stats", partition):
        table = read_table(file, [*_GROUP_COLUMNS, *_SUMMED_COLUMNS])
        aggregations = [(name, "sum") for name in _SUMMED_COLUMNS]
        for row in table.group_by(_GROUP_COLUMNS).aggregate(aggregations).to_pylist():
            key = tuple(row[name] for name in _GROUP_COLUMNS)
            sums[key].update({name: row[f"{name}_sum"] or 0 for name in _SUMMED_COLUMNS})
    has_test = any(split == "test" for _, _, split in sums)
    all_pixels = sum(counts["pixel_count"] for counts in sums.values())
    summaries = []
    for class_id, name in sorted({key[:2] for key in sums}):
        by_split = {key[2]: counts for key, counts in sums.items() if key[0] == class_id}
        evaluated = [by_split.get("test", Counter())] if has_test else by_split.values()
        union = sum(counts["union"] for counts in evaluated)
        pixels = sum(counts["pixel_count"] for counts in by_split.values())
        summaries.append(
            ClassSummary(
                class_name=name,
                pixel_share=pixels / all_pixels,
                iou=sum(counts["intersection"] for counts in evaluated) / union if union else None,
                iou_over="test" if has_test else "all",
            )
        )
    return summaries


def class_rows(summaries: list[ClassSummary]) -> list[dict[str, str]]:
    """Rows of a table, as text."""
    return [
        {
            "class": summary.class_name,
            "pixel share": f"{summary.pixel_share:.2%}",
            f"IoU on {summary.iou_over}": "" if summary.iou is None else f"{summary.iou:.3f}",
        }
        for summary in summaries
    ]


def draw_examples(dataset: str | Path, predictions: str | Path, partition: str, path: Path) -> bool:
    """Draws a panel of test images from the worst to the best: input, truth, prediction.

    Returns:
        Whether the test split has an image to draw.
    """
    import pyarrow.compute as pc

    manifest = load_manifest(dataset)
    files = files_of(predictions, "masks", partition)
    table = read_table(
        files,
        columns=["image_id", "mask", "pixel_accuracy"],
        filters=[("split", "=", "test")],
    ).sort_by("pixel_accuracy")
    # An image whose mask is all void has no accuracy.
    table = table.filter(pc.is_valid(table["pixel_accuracy"]))
    if not table.num_rows:
        return False
    chosen = np.unique(np.linspace(0, table.num_rows - 1, _EXAMPLES).round().astype(int))
    rows = {row["image_id"]: row for row in table.take(chosen).to_pylist()}
    records = _test_records(dataset, manifest, set(rows))
    # A model of a target has classes of its own, which the dataset's taxonomy does not name.
    known = (read_footer(files[0]).metadata or {}).get(b"lyft.taxonomy_sha256")
    same_classes = known in (None, manifest.taxonomy_sha256.encode())
    panel(
        [
            PanelRow(
                f"{image_id}   pixel accuracy {row['pixel_accuracy']:.3f}",
                decode_own(records[image_id].image),
                [
                    decode_own(records[image_id].mask),
                    decode_own(row["mask"]["bytes"])
                    if same_classes
                    else decode_pixels(row["mask"]["bytes"], NO_PIXEL_LIMIT),
                ],
            )
            for image_id, row in rows.items()
        ],
        ("input", "truth", "prediction"),
        manifest.taxonomy,
    ).save(path)
    return True


def _test_records(dataset: str | Path, manifest: Manifest, ids: set[str]) -> dict[str, Example]:
    shards = (read_examples(dataset, name) for name in manifest.shard_names("test"))
    return {one.id: one for one in chain.from_iterable(shards) if one.id in ids}
