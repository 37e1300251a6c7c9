"""Incremental inference: looks up images and rejects of the published run, to reuse their rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam.infer import runs
from beam.infer.table_parts import RowRef
from beam.shared.pairing import Reject
from runtime import storage
from runtime.parquet import read_table
from schemas.layout import part_index
from schemas.published import files_of

_IDENTITY = ("image_id", "source_uri", "image_sha256", "truth_sha256")
"""Columns that must be equal for an image's rows to be reused."""

_INDEX = pa.schema(
    [
        ("key", pa.uint64()),
        ("image_id", pa.string()),
        ("source_uri", pa.string()),
        ("image_sha256", pa.string()),
        ("truth_sha256", pa.string()),
        ("masks", pa.string()),
        ("class_stats", pa.string()),
        ("size", pa.int64()),
    ]
)


@dataclass(frozen=True)
class PreviousRun:
    """Files of a published run, for look-up; each worker opens them once.

    Attributes:
        index: an Arrow file of its images, ordered by a hash of the id; None if there is no run.
        rejects: files of its rejects; None to try all of them again.
        images_root: folder to which the paths of rejects are relative.
        classes: number of rows of ``class_stats`` for each image.
    """

    index: str | None = None
    rejects: tuple[str, ...] | None = None
    images_root: str = ""
    classes: int = 0

    def open(self) -> PreviousResults:
        """Memory-maps the index and reads the rejects."""
        return PreviousResults(self)


class PreviousResults:
    """Looks up images and rejects by their names and content hashes."""

    def __init__(self, previous: PreviousRun) -> None:
        self._classes = previous.classes
        self._rows = _INDEX.empty_table()
        if previous.index:
            # A mapped file stays readable after it has been deleted.
            with storage.local(previous.index) as path, pa.memory_map(str(path)) as source:
                self._rows = pa.ipc.open_file(source).read_all()
        self._keys = self._rows["key"].to_numpy()
        self._rejects = dict(_rejects(previous))

    def find_image(
        self, image_id: str, uri: str, image_sha256: str, truth_sha256: str | None
    ) -> RowRef | None:
        """A reference to the rows of the same image, URI and truth; None if there are none."""
        key, identity = _key(image_id), (image_id, uri, image_sha256, truth_sha256)
        for index in range(int(np.searchsorted(self._keys, np.uint64(key))), len(self._keys)):
            if self._keys[index] != key:
                break
            row: dict[str, Any] = self._rows.slice(index, 1).to_pylist()[0]
            if tuple(row[name] for name in _IDENTITY) == identity:
                files = {table: row[table] for table in ("masks", "class_stats")}
                return RowRef(image_id, files, self._classes, row["size"])
        return None

    def find_reject(self, path: str, sha256: str | None) -> Reject | None:
        """The reject of the same file with the same bytes, or None."""
        reject = self._rejects.get(path)
        return reject if reject and sha256 and reject.sha256 == sha256 else None


def find_previous(
    root: str,
    partition: str,
    recipe: str,
    index: str,
    *,
    images_root: str,
    classes: int,
    retry_rejects: bool,
) -> PreviousRun:
    """Indexes the published run of a partition, if a new run would write the same rows.

    Args:
        recipe: hash of everything that determines an image's rows, except its bytes.
        index: where the index is written.
        retry_rejects: whether to omit the rejects, and the images whose truth was rejected.
    """
    if runs.recipe_of(root, partition) != recipe or not runs.is_intact(root, partition):
        return PreviousRun()
    rejects = files_of(root, "rejects", partition)
    table = _index(root, partition, _truth_rejects(rejects) if retry_rejects else frozenset())
    with storage.writing(index) as path, pa.ipc.new_file(str(path), _INDEX) as writer:
        writer.write_table(table)
    return PreviousRun(index, None if retry_rejects else tuple(rejects), images_root, classes)


def _index(root: str, partition: str, without: frozenset[str]) -> pa.Table:
    class_files = files_of(root, "class_stats", partition)
    tables = [_INDEX.empty_table()]
    for file in files_of(root, "masks", partition):
        rows = read_table(file, [*_IDENTITY, "mask_size"])
        ids = rows["image_id"].to_pylist()
        columns = [
            pa.array(map(_key, ids), pa.uint64()),
            *(rows[name] for name in _IDENTITY),
            pa.array([file] * len(ids), pa.string()),
            pa.array([class_files[part_index(image_id, len(class_files))] for image_id in ids]),
            rows["mask_size"].cast(pa.int64()),
        ]
        tables.append(pa.table(columns, schema=_INDEX))
    table = pa.concat_tables(tables)
    kept = pc.invert(pc.is_in(table["image_id"], pa.array(sorted(without), pa.string())))
    return table.filter(kept).sort_by("key").combine_chunks()


def _truth_rejects(rejects: list[str]) -> frozenset[str]:
    rows = read_table(rejects, columns=["image_id", "stage"])
    return frozenset(
        row["image_id"] for row in rows.to_pylist() if row["stage"] == runs.TRUTH_STAGE
    )


def _rejects(previous: PreviousRun) -> Iterator[tuple[str, Reject]]:
    if previous.rejects is None:
        return
    for row in read_table(list(previous.rejects)).to_pylist():
        # The network may succeed the next time, e.g. if there is more memory.
        if row["stage"] == runs.PREDICT_STAGE:
            continue
        path = row["source_uri"].removeprefix(f"{previous.images_root}/")
        names = ("image_id", "stage", "code", "message", "source_sha256")
        image_id, *rest = (row[name] for name in names)
        yield path, Reject(image_id, path, *rest)


def _key(image_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest())
