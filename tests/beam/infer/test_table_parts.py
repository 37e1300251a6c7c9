"""Row files and the parts that are gathered from them; row groups of a part."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam.infer import row_files, table_parts
from beam.infer.row_files import WriteRowFiles
from beam.infer.table_parts import RowRef, _row_groups, write_part
from schemas.layout import part_index
from schemas.prediction import CLASS_STATS, MASKS, plain, with_footer

CLASSES = 3


def _mask_row(picture: bytes) -> dict[str, Any]:
    return dict.fromkeys(MASKS.names) | {
        "source_uri": "",
        "width": 1,
        "height": 1,
        "mean_confidence": 0.5,
        "image_sha256": "",
        "run_id": "old",
        "mask": {"bytes": picture, "path": ""},
        "mask_size": len(picture),
    }


def _class_rows(image_id: str) -> dict[str, list[Any]]:
    values = {"image_id": image_id, "class_name": "", "pixel_count": 1, "pixel_fraction": 0.5}
    values |= {"run_id": "old"}
    columns = {name: [values.get(name)] * CLASSES for name in CLASS_STATS.names}
    return columns | {"class_id": list(range(CLASSES))}


@pytest.mark.parametrize("table", ["masks", "class_stats"])
def test_parts_together_read_each_record_batch_about_once(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "_FLUSH_IMAGES", 100)
    ids = [f"image-{number}" for number in range(250)]
    writer = WriteRowFiles(str(tmp_path))
    writer.start_bundle()
    rows = [(_mask_row(b"x") | {"image_id": one}, _class_rows(one)) for one in ids]
    refs = [ref for row in rows for ref in writer.process(row)]
    refs += [one.value for one in writer.finish_bundle()]
    assert sorted(ref.image_id for ref in refs) == sorted(ids)
    read: list[int] = []
    read_batches = table_parts._read_batches

    def counted(file: str, indices: set[int]) -> pa.Table:
        read.append(len(indices))
        return read_batches(file, indices)

    monkeypatch.setattr(table_parts, "_read_batches", counted)
    parts, files = 12, 3
    schema = with_footer({"masks": MASKS, "class_stats": CLASS_STATS}[table], run_id="new")
    found = []
    for part in range(parts):
        of_part = [ref for ref in refs if part_index(ref.image_id, parts) == part]
        write_part(tmp_path / "part.parquet", table, of_part, schema, 1 << 20)
        found += pq.read_table(tmp_path / "part.parquet")["image_id"].to_pylist()
    assert sorted(found) == sorted(ids * (CLASSES if table == "class_stats" else 1))
    # 7, 7 and 4 batches; each but a file's first may be read by two neighbouring parts.
    assert sum(read) <= 7 + 7 + 4 + files * (parts - 1)


def test_row_groups_have_the_size_that_was_asked_for(tmp_path: Path) -> None:
    picture = bytes(range(256)) * 1024
    row = _mask_row(picture)
    ids = [f"{index:02d}" for index in reversed(range(10))]
    rows = pa.Table.from_pylist([row | {"image_id": one} for one in ids], schema=plain(MASKS))
    with pa.ipc.new_file(str(tmp_path / "spool.arrow"), rows.schema) as writer:
        writer.write_table(rows)
    refs = [RowRef(one, {"masks": str(tmp_path / "spool.arrow")}, 0, 0) for one in ids]
    schema = with_footer(MASKS, run_id="new")
    write_part(tmp_path / "part.parquet", "masks", refs, schema, 3 * len(picture))
    file = pq.ParquetFile(tmp_path / "part.parquet")
    groups = [file.metadata.row_group(at) for at in range(file.num_row_groups)]
    assert [group.num_rows for group in groups] == [2, 2, 2, 2, 2]
    table = file.read()
    assert table["image_id"].to_pylist() == sorted(ids)
    assert set(table["run_id"].to_pylist()) == {"new"}
    assert table.schema.field("mask").metadata[b"description"]


def test_row_groups_count_what_a_reader_holds_of_a_matrix() -> None:
    # 150 classes: 90 kB per row in memory, next to nothing in the file.
    cells = pa.array([[0] * 150**2] * 40 + [None], pa.list_(pa.int32()))
    masks = pa.array([{"bytes": b"x" * 2400, "path": "p"}] * 41)
    sizes = pa.array([2400] * 41, pa.int32())
    rows = pa.table({"mask": masks, "mask_size": sizes, "confusion": cells})
    groups = list(_row_groups(rows, 1 << 20))
    assert [count for _, count in groups] == [11, 11, 11, 8]
    assert all(rows.slice(*group).nbytes <= 1 << 20 for group in groups)


def test_parts_are_planned_for_the_memory_that_matrices_take() -> None:
    """300,000 images of 150 classes: their matrices alone are 27 GB."""
    ref = RowRef("image", {}, rows=150, size=8000)
    assert ref.bytes_in("masks") > 150 * 150 * 4
    assert ref.bytes_in("class_stats") < 150 * 100
    few = RowRef("image", {}, rows=13, size=2400)
    assert few.bytes_in("masks") < 3500
