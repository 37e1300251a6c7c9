"""Runs the inference job in the test's process, and looks at its tables."""

import io
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from jobs import IN_MEMORY
from PIL import Image

from beam.infer import pipeline as infer
from beam.infer.runs import TABLES
from beam.runners.run import pipeline_options
from runtime import storage
from schemas.config import InferConfig

CLASSES = 13


def run_infer(trained, output: Path, config: InferConfig | None = None, **place) -> Path:
    flags = {name: place.pop(name) for name in ("resume", "retry_rejects") if name in place}
    return Path(
        infer.run(
            trained.model,
            source=str(place["source"]) if "source" in place else None,
            dataset=str(place["dataset"]) if "dataset" in place else None,
            output=str(output),
            config=config or InferConfig(),
            tracking_uri=trained.tracking_uri,
            options=pipeline_options(IN_MEMORY),
            **flags,
        )
    )


def query(output: Path, sql: str) -> list[tuple]:
    connection = duckdb.connect()
    for table in ("masks", "class_stats", "runs", "rejects"):
        connection.execute(
            f"CREATE VIEW {table} AS FROM read_parquet('{output}/{table}/**/*.parquet',"
            " hive_partitioning = true)"
        )
    return connection.sql(sql).fetchall()


def counts_of(output: Path) -> tuple[int, ...]:
    columns = "images_read, images_predicted, images_reused, images_rejected"
    (row,) = query(output, f"FROM runs SELECT {columns}")
    return row


def tables_of(output: Path) -> dict[str, str]:
    """SHA-256 of all files except those of ``runs``, which holds times."""
    return {
        str(path.relative_to(output)): storage.file_sha256(path)
        for table in TABLES
        if table != "runs"
        for path in output.glob(f"{table}/**/*.parquet")
    }


def check_counts(output: Path, truth: dict[str, np.ndarray]) -> None:
    """Recomputes the counts of all images with truth from their stored masks, with numpy."""
    masks = query(
        output,
        "FROM masks SELECT image_id, mask.bytes, width, height, pixel_accuracy"
        " WHERE pixel_accuracy IS NOT NULL",
    )
    assert {row[0] for row in masks} == truth.keys()
    for image_id, data, width, height, accuracy in masks:
        mask = np.asarray(Image.open(io.BytesIO(data)))
        true = truth[image_id]
        assert mask.shape == (height, width) == true.shape
        assert accuracy == pytest.approx((mask == true).mean())
        rows = query(
            output,
            "FROM class_stats SELECT class_id, pixel_count, pixel_fraction, true_pixel_count,"
            f" intersection, \"union\", iou WHERE image_id = '{image_id}' ORDER BY class_id",
        )
        assert len(rows) == CLASSES
        assert sum(row[1] for row in rows) == width * height
        for class_id, count, fraction, true_count, intersection, union, iou in rows:
            found, there = mask == class_id, true == class_id
            assert count == found.sum()
            assert fraction == pytest.approx(found.mean())
            assert true_count == there.sum()
            assert intersection == (found & there).sum()
            assert union == (found | there).sum()
            assert iou == (pytest.approx(intersection / union) if union else None)


def published_run(
    database: duckdb.DuckDBPyConnection, version: str = "v1", source: str = "lyft"
) -> dict[str, Any]:
    """The row of ``runs`` of a version's predictions for a source."""
    result = database.sql(f"FROM runs WHERE version = '{version}' AND source = '{source}'")
    return dict(zip(result.columns, result.fetchall()[0], strict=True))


def pixels_of(path: str | Path) -> np.ndarray:
    """The stored pixels of a picture."""
    with Image.open(path) as image:
        return np.asarray(image)
