"""Runs of the inference job: what is staged, counted, published, and verified later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from beam import storage
from beam.model_uri import ResolvedModel
from beam.pairing import Reject
from schemas.classes import Taxonomy
from schemas.errors import UserError
from schemas.layout import partition_path
from schemas.prediction import CLASSES, RUNS, with_footer

TABLES = ("classes", "masks", "class_stats", "confusion", "_rejects", "runs")
"""In the order of publishing: a run's row appears when its rows are there."""

TRUTH_STAGE = "truth"
"""Stage of rejected masks: their images are predicted all the same."""

_IMAGES_READ = "images_read"
_FILES_KEY = b"lyft.files"


def partition_of(model: ResolvedModel, source_name: str) -> str:
    """Partition folder of a model version over a source, below each table."""
    return partition_path(model.name, model.version, source_name)


def is_lost_image(reject: Reject) -> bool:
    """True for a reject whose image has no prediction for it."""
    return reject.stage != TRUTH_STAGE and reject.code != "no_image"


def note_images_read(count: int, staging: str) -> None:
    """Stages how many images the source has, counted before the first is read."""
    Path(staging, _IMAGES_READ).write_text(str(count), encoding="utf-8")


def count(staging: Path) -> dict[str, int]:
    """Images read, predicted and rejected, counted in the staged files themselves.

    Raises:
        RuntimeError: they do not add up to the images of the source.
    """
    predicted = sum(pq.read_metadata(path).num_rows for path in staging.glob("masks/*.parquet"))
    rejects = pq.read_table(staging / "_rejects", columns=["stage", "code"])
    lost = pc.and_(
        pc.not_equal(rejects["stage"], TRUTH_STAGE), pc.not_equal(rejects["code"], "no_image")
    )
    rejected = int(pc.sum(lost).as_py() or 0)
    read = int(Path(staging, _IMAGES_READ).read_text(encoding="utf-8"))
    if read != predicted + rejected:
        raise RuntimeError(
            f"{read} images were read, but {predicted} predicted and {rejected} rejected; "
            "nothing is published"
        )
    return {
        "images_read": read,
        "images_predicted": predicted,
        "images_rejected": rejected,
    }


def check_source(root: Path, partition: str, source: str) -> None:
    """Refuses to replace the rows of another source that bears the same name.

    Raises:
        UserError: names the other source.
    """
    path = root / "runs" / partition / "run.parquet"
    if not path.is_file():
        return
    (other,) = pq.ParquetFile(path).read(["source_uri"])["source_uri"].to_pylist()
    if other != source:
        raise UserError(
            f"the tables hold rows of {other!r} under the name of this source; "
            "give this one another with --source_name"
        )


def write_classes(
    staging: Path, taxonomy: Taxonomy, run_id: str, footer: Mapping[str, str | None]
) -> None:
    """Stages the rows of ``classes``: every class of the taxonomy, in the order of ids."""
    rows = [
        {
            "class_id": label.id,
            "class_name": label.name,
            "color": "#{:02x}{:02x}{:02x}".format(*label.colour),
            "taxonomy": taxonomy.name,
            "taxonomy_sha256": taxonomy.sha256,
            "run_id": run_id,
        }
        for label in taxonomy.classes
    ]
    table = pa.Table.from_pylist(rows, schema=with_footer(CLASSES, **footer))
    pq.write_table(table, staging / "classes/classes.parquet")


def write_run(staging: Path, facts: Mapping[str, Any], footer: Mapping[str, str | None]) -> None:
    """Stages the row of ``runs``; its footer holds the checksums of all other staged files."""
    files = {
        f"{table}/{path.name}": storage.file_sha256(path)
        for table in TABLES
        for path in sorted(staging.glob(f"{table}/*.parquet"))
    }
    schema = with_footer(RUNS, **footer)
    schema = schema.with_metadata({**schema.metadata, _FILES_KEY: json.dumps(files).encode()})
    pq.write_table(pa.Table.from_pylist([dict(facts)], schema=schema), staging / "runs/run.parquet")


def publish(staging: Path, root: Path, partition: str) -> None:
    """Puts each table's partition in its place, in one step each."""
    for table in TABLES:
        storage.publish(staging / table, root / table / partition)


def is_published(root: Path, partition: str, run_id: str) -> bool:
    """True where this run's partition is there and all its files have their checksums."""
    path = root / "runs" / partition / "run.parquet"
    try:
        table = pq.ParquetFile(path)
        if table.read(["run_id"])["run_id"].to_pylist() != [run_id]:
            return False
        files = json.loads(table.schema_arrow.metadata[_FILES_KEY])
        return all(
            storage.file_sha256(root / name.split("/")[0] / partition / name.split("/")[1]) == sha
            for name, sha in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
