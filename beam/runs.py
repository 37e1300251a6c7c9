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
"""In the order of publishing: a run's row appears when all its rows are there."""

TRUTH_STAGE = "truth"
"""Stage of rejected masks: their images are predicted all the same."""

IMAGES_READ, IMAGES_REUSED = "images_read", "images_reused"
"""Files of the staging folder, written by ``note_count``."""

_FILES_KEY = b"lyft.files"


def partition_of(model: ResolvedModel, source_name: str) -> str:
    """Partition folder of a model version over a source, below each table."""
    return partition_path(model.name, model.version, source_name)


def is_lost_image(reject: Reject) -> bool:
    """True for a reject whose image has no prediction for it."""
    return reject.stage != TRUTH_STAGE and reject.code != "no_image"


def note_count(name: str, count: int, folder: str = "") -> None:
    """Writes a number that was counted in the graph, for ``count``."""
    Path(folder, name).write_text(str(count), encoding="utf-8")


def count(staging: Path, tables: Path) -> dict[str, int]:
    """Images read, predicted, reused and rejected; the tables are counted in the files themselves.

    Raises:
        RuntimeError: they do not add up to the images of the source.
    """
    predicted = sum(pq.read_metadata(path).num_rows for path in tables.glob("masks/*.parquet"))
    rejects = pq.read_table(tables / "_rejects", columns=["stage", "code"])
    lost = pc.and_(
        pc.not_equal(rejects["stage"], TRUTH_STAGE), pc.not_equal(rejects["code"], "no_image")
    )
    rejected = int(pc.sum(lost).as_py() or 0)
    read, reused = (_noted(staging / name) for name in (IMAGES_READ, IMAGES_REUSED))
    if read != predicted + rejected:
        raise RuntimeError(
            f"{read} images were read, but {predicted} predicted and {rejected} rejected; "
            "nothing is published"
        )
    return {
        "images_read": read,
        "images_predicted": predicted,
        "images_reused": reused,
        "images_rejected": rejected,
    }


def check_source(root: Path, partition: str, source: str) -> None:
    """Refuses to replace the rows of another source that bears the same name.

    Raises:
        UserError: names the other source.
    """
    path = _run_file(root, partition)
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


def recipe_of(root: Path, partition: str) -> str | None:
    """What decided the rows of the published run, as a hash; None where there is no such run."""
    try:
        metadata = pq.read_schema(_run_file(root, partition)).metadata
    except (OSError, ValueError):
        return None
    recipe = metadata.get(b"lyft.recipe")
    return recipe.decode() if recipe else None


def is_published(root: Path, partition: str, run_id: str) -> bool:
    """True where this run's partition is there, whole, and no file of its source was unreadable.

    Such a file may be readable by now, and looks the same in a listing.
    """
    try:
        (found,) = pq.ParquetFile(_run_file(root, partition)).read(["run_id"])["run_id"].to_pylist()
        rejects = pq.read_table(root / "_rejects" / partition, columns=["code"], partitioning=None)
    except (OSError, ValueError):
        return False
    unreadable = "unreadable" in rejects["code"].to_pylist()
    return bool(found == run_id) and not unreadable and is_whole(root, partition)


def is_whole(root: Path, partition: str) -> bool:
    """True where all files of the published run have their checksums."""
    try:
        files = json.loads(pq.read_schema(_run_file(root, partition)).metadata[_FILES_KEY])
        return all(
            storage.file_sha256(root / name.split("/")[0] / partition / name.split("/")[1]) == sha
            for name, sha in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _noted(path: Path) -> int:
    """What ``note_count`` wrote; nothing was counted where there is no such file."""
    return int(path.read_text(encoding="utf-8")) if path.exists() else 0


def _run_file(root: Path, partition: str) -> Path:
    return root / "runs" / partition / "run.parquet"
