"""What a person wants to see at the end of a run: a class table and a picture."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from schemas.example import parse, read_records
from schemas.layout import partition_path
from schemas.manifest import Manifest, load_manifest
from schemas.picture import PanelRow, panel

_EXAMPLES = 4


@dataclass(frozen=True)
class ClassSummary:
    """One class over all images of a run.

    Attributes:
        pixel_share: share of all predicted pixels.
        iou: over the images of the test split, or of all where there is none of it; None without
            truth or where the class does not occur.
        iou_over: ``test`` or ``all``.
    """

    class_name: str
    pixel_share: float
    iou: float | None
    iou_over: str


def partition_of(model_uri: str, source_name: str) -> str:
    """Partition of ``models:/<name>/<version>`` over a source."""
    name, _, version = model_uri.removeprefix("models:/").rpartition("/")
    return partition_path(name, f"v{version}", source_name)


def class_summary(predictions: str | Path, partition: str) -> list[ClassSummary]:
    """The classes of one partition of ``class_stats``, in the order of their ids."""
    folder = Path(predictions, "class_stats", partition)
    columns = ["split", "class_id", "class_name", "pixel_count", "intersection", "union"]
    # A single partition is read: the folder names above it are no columns here.
    table = pq.read_table(folder, columns=columns, partitioning=None)
    ids = table["class_id"].to_numpy()
    names = table["class_name"].to_pylist()
    pixels = table["pixel_count"].to_numpy()
    splits = np.array(table["split"].to_pylist(), object)
    has_test = bool((splits == "test").any())
    held_out = splits == "test" if has_test else np.full(len(splits), True)
    overlap = table["intersection"].to_numpy(zero_copy_only=False).astype(float)
    union = table["union"].to_numpy(zero_copy_only=False).astype(float)
    summaries = []
    for class_id in np.unique(ids):
        of_class = ids == class_id
        total = np.nansum(union[of_class & held_out])
        summaries.append(
            ClassSummary(
                class_name=names[int(np.argmax(of_class))],
                pixel_share=float(pixels[of_class].sum() / pixels.sum()),
                iou=float(np.nansum(overlap[of_class & held_out]) / total) if total else None,
                iou_over="test" if has_test else "all",
            )
        )
    return summaries


def class_rows(summaries: list[ClassSummary]) -> list[dict[str, str]]:
    """The rows of a table for people."""
    return [
        {
            "class": one.class_name,
            "pixel share": f"{one.pixel_share:.2%}",
            f"IoU on {one.iou_over}": "" if one.iou is None else f"{one.iou:.3f}",
        }
        for one in summaries
    ]


def text_table(rows: list[dict[str, str]]) -> str:
    """Aligned columns for a terminal."""
    heads = list(rows[0])
    widths = [max(len(head), *(len(row[head]) for row in rows)) for head in heads]
    lines = [heads, ["-" * width for width in widths], *([row[h] for h in heads] for row in rows)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def draw_examples(dataset: str | Path, predictions: str | Path, partition: str, path: Path) -> bool:
    """A panel of test images from the worst to the best: input, truth, prediction.

    Returns:
        Whether there was any image of the test split to draw.
    """
    manifest = load_manifest(dataset)
    table = pq.read_table(
        Path(predictions, "masks", partition),
        columns=["image_id", "mask", "pixel_accuracy"],
        filters=[("split", "=", "test")],
        partitioning=None,
    ).sort_by("pixel_accuracy")
    if not table.num_rows:
        return False
    chosen = np.unique(np.linspace(0, table.num_rows - 1, _EXAMPLES).round().astype(int))
    rows = {row["image_id"]: row for row in table.take(chosen).to_pylist()}
    records = _records(Path(dataset), manifest, set(rows))
    panel(
        [
            PanelRow(
                f"{image_id}   pixel accuracy {row['pixel_accuracy']:.3f}",
                _pixels(records[image_id].image),
                [_pixels(records[image_id].mask), _pixels(row["mask"]["bytes"])],
            )
            for image_id, row in rows.items()
        ],
        ("input", "truth", "prediction"),
        manifest.taxonomy,
    ).save(path)
    return True


def _records(dataset: Path, manifest: Manifest, ids: set[str]) -> dict[str, Any]:
    found = {}
    for name in manifest.shard_names("test"):
        with open(dataset / name, "rb") as file:
            for record in read_records(file, name):
                example = parse(record)
                if example.id in ids:
                    found[example.id] = example
    return found


def _pixels(png: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(png)))
