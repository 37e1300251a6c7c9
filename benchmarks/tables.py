"""Times the cookbook's queries on many rows: ``make bench BENCH=tables``.

Writes the tables of a million images (13 million class rows) with the job's own writer, in the
cookbook's partitions: versions v1 and v2 over ``lyft``, v1 over ``driveA`` and ``driveB``. Then it
runs every query of docs/cookbook.md in DuckDB on two threads.
"""

import argparse
import hashlib
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.tables import connect
from beam.infer.table_parts import write_part
from schemas.classes import load_taxonomy
from schemas.config import InferConfig
from schemas.layout import SPLITS, part_file_name, part_index, partition_path
from schemas.prediction import (
    CLASS_STATS,
    CLASSES,
    CONFUSION,
    MASKS,
    PREDICTION_REJECTS,
    RUNS,
    plain,
    with_footer,
)

THREADS = 2
IMAGES_A_PART = 2000
ROUNDS = 5
PIXELS = 800 * 600
TAXONOMY = load_taxonomy("carla-0.8")
RUN_OF = {("v1", "lyft"): "a", ("v2", "lyft"): "b", ("v1", "driveA"): "c", ("v1", "driveB"): "d"}
PNG = {"bytes": bytes(500), "path": "mask.png"}
COOKBOOK = Path(__file__).parents[1] / "docs/cookbook.md"


def image_rows(image_id: str, run_id: str, version: str, split: str | None) -> tuple[dict, list]:
    """Rows of one image: plausible, consistent figures that depend only on its id and version."""
    seed = int.from_bytes(image_id.encode()) % (1 << 60)
    random = np.random.default_rng([seed, int(version[1:])])
    classes = len(TAXONOMY)
    truth = np.random.default_rng(seed).multinomial(PIXELS, WEIGHTS)
    right = random.binomial(truth, SKILL[version])
    matrix = np.diag(right)
    for true in np.flatnonzero(truth > right):
        matrix[true] += random.multinomial(truth[true] - right[true], WEIGHTS)
    found, hits = matrix.sum(axis=0), np.diagonal(matrix)
    union = found + truth - hits
    confidence = random.beta(40, 2, classes).astype(np.float32)
    mask = {
        "image_id": image_id,
        "source_uri": f"/data/{image_id}.png",
        "split": split,
        "width": 800,
        "height": 600,
        "mask": PNG,
        "mask_size": len(PNG["bytes"]),
        "mean_confidence": float(confidence.mean()),
        "pixel_accuracy": float(hits.sum() / PIXELS),
        "confusion": matrix.ravel().tolist(),
        "image_sha256": hashlib.sha256(image_id.encode()).hexdigest(),
        "truth_sha256": hashlib.sha256(f"{image_id} mask".encode()).hexdigest(),
        "run_id": run_id,
    }
    stats = [
        {
            "image_id": image_id,
            "split": split,
            "class_id": label.id,
            "class_name": label.name,
            "pixel_count": count,
            "pixel_fraction": count / PIXELS,
            "mean_confidence": share if count else None,
            "true_pixel_count": true,
            "intersection": overlap,
            "union": total,
            "iou": overlap / total if total else None,
            "run_id": run_id,
        }
        for label, count, share, true, overlap, total in zip(
            TAXONOMY.classes,
            found.tolist(),
            confidence.tolist(),
            truth.tolist(),
            hits.tolist(),
            union.tolist(),
            strict=True,
        )
    ]
    return mask, stats


WEIGHTS = np.array([350, 130, 1, 12, 0.05, 0.5, 7, 205, 88, 40, 160, 3, 0.05])
WEIGHTS /= WEIGHTS.sum()
SKILL = {"v1": 0.9, "v2": 0.85}


def write_files(
    root: Path, version: str, source: str, ids: list[str], part: int, parts: int
) -> int:
    """Writes one part of both tables of one partition; returns the number of its class rows."""
    run_id = RUN_OF[version, source] * 16
    rows: dict[str, list[Any]] = {"masks": [], "class_stats": []}
    for image_id in ids:
        split = SPLITS[hash_of(image_id) % 3] if source == "lyft" else None
        mask, stats = image_rows(image_id, run_id, version, split)
        rows["masks"].append(mask)
        rows["class_stats"] += stats
    for name, schema in (("masks", MASKS), ("class_stats", CLASS_STATS)):
        table = pa.Table.from_pylist(rows[name], schema=plain(schema))
        folder = root / name / partition_path("lyft-unet", version, source)
        folder.mkdir(parents=True, exist_ok=True)
        write_part(
            folder / part_file_name(run_id, part, parts),
            name,
            table,
            with_footer(schema, run_id=run_id),
            InferConfig().row_group_mib << 20,
        )
    return len(ids) * len(TAXONOMY)


def hash_of(image_id: str) -> int:
    """A hash of an image's id, which decides its split."""
    return part_index(image_id, 1 << 30)


def write_small_tables(root: Path, version: str, source: str, images: int) -> None:
    """Writes the dimension tables of one partition."""
    run_id = RUN_OF[version, source] * 16
    now = datetime(2026, 1, 1, tzinfo=UTC)
    run: dict[str, Any] = dict.fromkeys(RUNS.names, "x")
    run |= {"run_id": run_id, "model": "lyft-unet", "version": version, "source": source}
    run |= {"started_at": now, "finished_at": now}
    run |= {"images_reused": 0, "images_rejected": 0}
    run |= {"images_read": images, "images_predicted": images}
    names = TAXONOMY.names
    cells = [
        {
            "split": split,
            "true_class_id": true,
            "true_class_name": names[true],
            "predicted_class_id": found,
            "predicted_class_name": names[found],
            "pixel_count": 1000 * true + found,
            "run_id": run_id,
        }
        for split in (SPLITS if source == "lyft" else (None,))
        for true, found in np.ndindex(len(names), len(names))
    ]
    labels = [
        {"class_id": c.id, "class_name": c.name, "color": "#000000", "run_id": run_id}
        | {"taxonomy": TAXONOMY.name, "taxonomy_sha256": TAXONOMY.sha256}
        for c in TAXONOMY.classes
    ]
    for name, schema, rows in (
        ("runs", RUNS, [run]),
        ("confusion", CONFUSION, cells),
        ("classes", CLASSES, labels),
        ("rejects", PREDICTION_REJECTS, []),
    ):
        folder = root / name / partition_path("lyft-unet", version, source)
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "part.parquet")


def synthesise(root: Path, images: int) -> int:
    """Writes all tables, with a quarter of the images in each partition; returns the class rows."""
    count = images // len(RUN_OF)
    parts = -(-count // IMAGES_A_PART)
    rows = 0
    with ProcessPoolExecutor(THREADS) as pool:
        jobs = []
        for version, source in RUN_OF:
            for name in ("masks", "class_stats"):
                (root / name / partition_path("lyft-unet", version, source)).mkdir(parents=True)
            write_small_tables(root, version, source, count)
            by_part: list[list[str]] = [[] for _ in range(parts)]
            for index in range(count):
                image_id = f"{source}/{index // 10_000:03d}_{index % 10_000:04d}"
                by_part[part_index(image_id, parts)].append(image_id)
            jobs += [
                pool.submit(write_files, root, version, source, ids, part, parts)
                for part, ids in enumerate(by_part)
            ]
        for job in jobs:
            rows += job.result()
    return rows


def queries() -> Iterator[tuple[str, str]]:
    """Heading and text of each of the cookbook's queries."""
    heading = ""
    for line in re.finditer(
        r"^#+ ([^\n]*)$|^```sql\n(.*?)^```$", COOKBOOK.read_text(), re.MULTILINE | re.DOTALL
    ):
        heading = line[1] or heading
        if line[2]:
            yield heading, line[2]


def main() -> None:
    """Writes, measures and queries the tables; prints the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--tables", type=Path, help="keep the tables here, or take them from here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-tables-") as scratch:
        root = args.tables or Path(scratch)
        if not (root / "runs").is_dir():
            started = time.perf_counter()
            rows = synthesise(root, args.images)
            print(f"wrote {rows:,} class rows in {time.perf_counter() - started:.0f} s")
        for name in ("class_stats", "masks"):
            files = list((root / name).rglob("*.parquet"))
            size = sum(file.stat().st_size for file in files)
            count = sum(pq.read_metadata(file).num_rows for file in files)
            print(
                f"{name}: {count:,} rows, {len(files)} files, {size / 1e6:.1f} MB, "
                f"{size / count:.1f} bytes a row"
            )
        with connect(root) as database:
            database.execute(f"SET threads = {THREADS}")
            slowest = 0.0
            print(f"\nseconds of a query, median of {ROUNDS}, {THREADS} threads")
            for heading, sql in queries():
                times = []
                for _ in range(ROUNDS):
                    started = time.perf_counter()
                    database.sql(sql).fetchall()
                    times.append(time.perf_counter() - started)
                middle = statistics.median(times)
                slowest = max(slowest, middle)
                print(f"{middle:8.3f}  {heading}")
            print(f"{slowest:8.3f}  the slowest")


if __name__ == "__main__":
    main()
