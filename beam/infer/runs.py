"""The run of an inference job: its rows in ``runs`` and ``classes``, image counts, integrity."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from beam.infer.model_uri import ResolvedModel
from beam.shared.atomic_writes import atomic_file
from beam.shared.intact import intact_files
from beam.shared.pairing import Reject
from runtime import listing, storage
from runtime.command_line import UP_TO_DATE, log
from runtime.errors import UserError, first_line
from runtime.parquet import read_footer, read_table
from runtime.storage import join, writing
from schemas.classes import Taxonomy
from schemas.layout import partition_path
from schemas.prediction import CLASSES, RUNS, SCHEMAS, with_footer
from schemas.published import FILES_KEY, RUN_FILE, checksums, files_of, run_file

TABLES = tuple(SCHEMAS)
"""In the order of publishing: ``runs`` comes last."""

TRUTH_STAGE = "truth"
"""Stage of rejected masks, whose images are predicted nevertheless."""

PREDICT_STAGE = "predict"
"""Stage of images on which the network failed."""

TRANSIENT_CODES = frozenset({"unreadable", "failed", "out_of_memory"})
"""Codes of rejects that may be the machine's fault: the next run tries them again."""

IMAGES_READ, IMAGES_REUSED = "images_read", "images_reused"
"""Names of the files in the staging folder that ``write_count`` writes."""

CLASSES_FILE = "classes.parquet"


def partition_of(model: ResolvedModel, source_name: str) -> str:
    """The partition folder, below each table, of a model version and a source."""
    return partition_path(model.name, model.version, source_name)


def is_lost_image(reject: Reject) -> bool:
    """True for a reject that leaves its image without a prediction."""
    return reject.stage != TRUTH_STAGE


def write_count(name: str, count: int, folder: str = "") -> None:
    """Writes a number that the graph has counted, for ``count_images`` to read."""
    with atomic_file(join(folder, name), folder) as path:
        path.write_text(str(count), encoding="utf-8")


def count_images(staging: str, tables: str) -> dict[str, int]:
    """Counts images: predicted and rejected in the staged tables, read and reused in the graph.

    Raises:
        RuntimeError: the predicted and rejected images do not add up to those of the source.
    """
    predicted = sum(storage.map_concurrently(_rows_in, _staged(tables, "masks")))
    rejects = read_table(_staged(tables, "rejects"), columns=["stage"])
    rejected = int(pc.sum(pc.not_equal(rejects["stage"], TRUTH_STAGE)).as_py() or 0)
    read, reused = (_read_count(join(staging, name)) for name in (IMAGES_READ, IMAGES_REUSED))
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


def check_failures(tables: str, images: int, limit: float) -> None:
    """Refuses to publish if the network failed on so many images that they are not the cause.

    Args:
        images: number of images that were read.
        limit: largest share of them that may have failed.

    Raises:
        UserError: more have failed; quotes the first failure.
    """
    columns = ["source_uri", "stage", "code", "message"]
    rows = read_table(_staged(tables, "rejects"), columns=columns).to_pylist()
    failed = [row for row in rows if row["stage"] == PREDICT_STAGE]
    if len(failed) > limit * images:
        first = failed[0]
        raise UserError(
            f"the network failed on {len(failed):,} of {images:,} images, more than "
            f"--max_failed_fraction={limit:g} allows; nothing is published; the first: "
            f"{first['source_uri']}: {first['code']}: {first_line(first['message'])}"
        )


def nothing_predicted(tables: str, source: str) -> UserError:
    """The error to raise if all images were rejected: counts the reasons and quotes the first."""
    columns = ["source_uri", "stage", "code", "message"]
    rows = read_table(_staged(tables, "rejects"), columns=columns).to_pylist()
    lost = [row for row in rows if row["stage"] != TRUTH_STAGE]
    counts = Counter(row["code"] for row in lost).most_common()
    reasons = ", ".join(f"{count:,} {code}" for code, count in counts)
    return UserError(
        f"no image of {source!r} could be predicted: {reasons}; nothing is published; the first: "
        f"{lost[0]['source_uri']}: {first_line(lost[0]['message'])}"
    )


def warn_of_masks(tables: str) -> None:
    """Warns of masks that are rejects: their images count as predicted, but have no truth."""
    columns = ["source_uri", "stage", "code", "message"]
    rows = read_table(_staged(tables, "rejects"), columns=columns).to_pylist()
    if masks := [row for row in rows if row["stage"] == TRUTH_STAGE]:
        counts = Counter(row["code"] for row in masks).most_common()
        reasons = ", ".join(f"{count:,} {code}" for code, count in counts)
        log(
            f"warning: masks that are rejects give no truth: {reasons}; the first: "
            f"{masks[0]['source_uri']}: {first_line(masks[0]['message'])}"
        )


def check_same_origin(
    root: str, partition: str, source: str, fingerprint: str | None, model: ResolvedModel
) -> None:
    """Refuses to replace the rows of another source, or of another model, with the same name.

    Args:
        fingerprint: of the dataset, which may have moved; None for a folder of images.

    Raises:
        UserError: names the other source or model.
    """
    try:
        columns = ["source_uri", "dataset_fingerprint", "model_sha256"]
        (run,) = read_table(run_file(root, partition), columns).to_pylist()
    except (OSError, ValueError):
        return  # No run is published, or its damaged file will be replaced.
    other_source, other_model = run["source_uri"], run["model_sha256"]
    is_same_dataset = fingerprint is not None and run["dataset_fingerprint"] == fingerprint
    if other_source != source and not is_same_dataset:
        raise UserError(
            f"the tables hold rows of {other_source!r} under the name of this source; "
            "name this source differently with --source_name"
        )
    if other_model != model.sha256:
        raise UserError(
            f"the tables hold rows of another model under the name {model.name} {model.version}: "
            f"expected a model file with SHA-256 {other_model[:12]}…, found {model.sha256[:12]}…; "
            "its MLflow store is another one, or was made anew: choose another --output"
        )


def write_classes(
    tables: str, taxonomy: Taxonomy, run_id: str, footer: Mapping[str, str | None]
) -> None:
    """Stages the rows of ``classes``: every class of the taxonomy, ordered by id."""
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
    with writing(join(tables, "classes", CLASSES_FILE)) as path:
        pq.write_table(table, path, compression="zstd")


def write_run(
    tables: str, values: Mapping[str, Any], footer: Mapping[str, str | None], suffix: str = ""
) -> None:
    """Stages the row of ``runs``; its footer holds the checksums of all other staged files.

    Args:
        values: by column; suffix: as in ``with_suffix``.
    """
    staged = [place for table in TABLES for place in _staged(tables, table)]
    digests = storage.map_concurrently(storage.file_sha256, staged)
    names = [with_suffix(place.removeprefix(f"{tables}/"), suffix) for place in staged]
    files = dict(zip(names, digests, strict=True))
    schema = with_footer(RUNS, **footer)
    schema = schema.with_metadata({**schema.metadata, FILES_KEY: json.dumps(files).encode()})
    with writing(join(tables, "runs", RUN_FILE)) as path:
        row = pa.Table.from_pylist([dict(values)], schema=schema)
        # No other file has a checksum of this one.
        pq.write_table(row, path, compression="zstd", write_page_checksum=True)


def with_suffix(name: str, suffix: str) -> str:
    """The name under which a staged file is published; ``suffix`` may be empty."""
    return f"{name.removesuffix('.parquet')}-{suffix}.parquet" if suffix else name


def recipe_of(root: str, partition: str) -> str | None:
    """Recipe hash of the published run (``Job.recipe``); None if there is no run."""
    try:
        metadata = read_footer(run_file(root, partition)).metadata or {}
    except (OSError, ValueError):
        return None
    recipe = metadata.get(b"lyft.recipe")
    return recipe.decode() if recipe else None


def is_unchanged(root: str, partition: str, run_id: str) -> bool:
    """Whether the job can end here; logs it. See ``is_published``."""
    published = is_published(root, partition, run_id)
    if published:
        log(f"{UP_TO_DATE}: run {run_id} is published, all files intact")
    return published


def is_published(root: str, partition: str, run_id: str) -> bool:
    """True if this run is published and intact, without rejects that another try may turn good.

    A file that was unreadable, for example, may be readable now although its listing is the same.
    """
    try:
        run = read_table(run_file(root, partition))
        rejects = read_table(files_of(root, "rejects", partition), columns=["code"])
    except (OSError, ValueError):
        return False
    if not TRANSIENT_CODES.isdisjoint(rejects["code"].to_pylist()):
        return False
    return bool(run["run_id"].to_pylist() == [run_id]) and is_intact(root, partition)


def is_intact(root: str, partition: str) -> bool:
    """True if all files of the published run are intact."""
    try:
        expected = checksums(root, partition)
        return intact_files(expected, run_file(root, partition)) == expected.keys()
    except (OSError, ValueError, TypeError):
        return False


def _staged(tables: str, table: str) -> list[str]:
    folder = join(tables, table)
    return [join(folder, file.path) for file in listing.files(folder)]


def _rows_in(place: str) -> int:
    return int(read_footer(place).num_rows)


def _read_count(place: str) -> int:
    """The number that ``write_count`` wrote; 0 if there was nothing to count, and so no file."""
    try:
        return int(storage.read_bytes(place))
    except FileNotFoundError:
        return 0
