"""The published run that a new one goes on from: images and rejects that need no second look."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from beam import runs
from beam.pairing import Reject
from beam.spool import Ref, part_of

_INDEX = pa.schema(
    [
        ("key", pa.uint64()),
        ("image_id", pa.string()),
        ("image_sha256", pa.string()),
        ("truth_sha256", pa.string()),
        ("masks", pa.string()),
        ("class_stats", pa.string()),
        ("size", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Previous:
    """Where a published run may be looked up; a worker opens it once.

    Attributes:
        index: an Arrow file of its images, ordered by a hash of the id; None where there is none.
        rejects: the folder of its rejects; None where they are all to be tried again.
        images_root: folder below which the paths of rejects are named.
        classes: rows of ``class_stats`` for each image.
    """

    index: str | None = None
    rejects: str | None = None
    images_root: str = ""
    classes: int = 0

    def open(self) -> Known:
        """Maps the index into memory and reads the rejects."""
        return Known(self)


class Known:
    """Images and rejects by their names and the hashes of their bytes."""

    def __init__(self, previous: Previous) -> None:
        self._classes = previous.classes
        self._rows = _INDEX.empty_table()
        if previous.index:
            with pa.memory_map(previous.index) as source:
                self._rows = pa.ipc.open_file(source).read_all()
        self._keys = self._rows["key"].to_numpy()
        self._rejects = dict(_rejects(previous))

    def image(self, image_id: str, image_sha256: str, truth_sha256: str | None) -> Ref | None:
        """Where the rows of the very same image and truth lie."""
        key = _key(image_id)
        for at in range(int(np.searchsorted(self._keys, np.uint64(key))), len(self._keys)):
            if self._keys[at] != key:
                break
            row: dict[str, Any] = self._rows.slice(at, 1).to_pylist()[0]
            if (row["image_id"], row["image_sha256"], row["truth_sha256"]) == (
                *(image_id, image_sha256, truth_sha256),
            ):
                files = {table: row[table] for table in ("masks", "class_stats")}
                return Ref(image_id, files, self._classes, row["size"])
        return None

    def reject(self, path: str, sha256: str | None) -> Reject | None:
        """The reject of the very same bytes, as it was written."""
        reject = self._rejects.get(path)
        return reject if reject and sha256 and reject.sha256 == sha256 else None


def find_previous(
    root: Path,
    partition: str,
    recipe: str,
    index: Path,
    *,
    images_root: str,
    classes: int,
    retry_rejects: bool,
) -> Previous:
    """Indexes the published run of a partition, if its rows are what a new run would write.

    Args:
        recipe: hash of all that decides the rows of an image beside its bytes.
        index: where the index is written.
        retry_rejects: whether rejects are forgotten, and images whose truth was rejected too.
    """
    if runs.recipe_of(root, partition) != recipe or not runs.is_whole(root, partition):
        return Previous()
    rejects = root / "_rejects" / partition
    table = _index(root, partition, _truth_rejects(rejects) if retry_rejects else frozenset())
    with pa.ipc.new_file(str(index), _INDEX) as writer:
        writer.write_table(table)
    return Previous(str(index), None if retry_rejects else str(rejects), images_root, classes)


def _index(root: Path, partition: str, without: frozenset[str]) -> pa.Table:
    files = {
        table: [str(path) for path in sorted((root / table / partition).glob("*.parquet"))]
        for table in ("masks", "class_stats")
    }
    columns = ["image_id", "image_sha256", "truth_sha256", "mask"]
    found = []
    for file in files["masks"]:
        for batch in pq.ParquetFile(file).iter_batches(1024, columns=columns):
            ids = batch["image_id"].to_pylist()
            class_files = files["class_stats"]
            found.append(
                pa.table(
                    [
                        pa.array([_key(one) for one in ids], pa.uint64()),
                        *(batch[name] for name in columns[:3]),
                        pa.array([file] * len(ids), pa.string()),
                        pa.array([class_files[part_of(one, len(class_files))] for one in ids]),
                        pc.binary_length(pc.struct_field(batch["mask"], "bytes")).cast(pa.int64()),
                    ],
                    schema=_INDEX,
                )
            )
    table = pa.concat_tables(found) if found else _INDEX.empty_table()
    kept = pc.invert(pc.is_in(table["image_id"], pa.array(sorted(without), pa.string())))
    return table.filter(kept).sort_by("key").combine_chunks()


def _truth_rejects(folder: Path) -> frozenset[str]:
    rows = pq.read_table(folder, columns=["image_id", "stage"], partitioning=None)
    return frozenset(
        row["image_id"] for row in rows.to_pylist() if row["stage"] == runs.TRUTH_STAGE
    )


def _rejects(previous: Previous) -> Iterator[tuple[str, Reject]]:
    if previous.rejects is None:
        return
    for row in pq.read_table(previous.rejects, partitioning=None).to_pylist():
        path = row["source_uri"].removeprefix(f"{previous.images_root}/")
        names = ("image_id", "stage", "code", "message", "source_sha256")
        image_id, *rest = (row[name] for name in names)
        yield path, Reject(image_id, path, *rest)


def _key(image_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest())
