"""Row groups of a table's files."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from beam.infer.table_parts import RowRef, _row_groups, write_part
from schemas.prediction import MASKS, plain, with_footer


def test_row_groups_have_the_size_that_was_asked_for(tmp_path: Path) -> None:
    picture = bytes(range(256)) * 1024
    row = dict.fromkeys(MASKS.names) | {
        "source_uri": "",
        "width": 1,
        "height": 1,
        "mean_confidence": 0.5,
        "image_sha256": "",
        "run_id": "old",
        "mask": {"bytes": picture, "path": ""},
        "mask_size": len(picture),
    }
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
