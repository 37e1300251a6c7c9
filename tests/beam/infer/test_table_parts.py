"""Row files and the parts that are gathered from them; row groups of a part."""

from collections import Counter
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from jobs import IN_MEMORY

from beam.infer import row_files, table_parts
from beam.infer.table_parts import Slice, _row_groups, row_bytes, write_part
from beam.runners.run import pipeline_options
from runtime.errors import UnavailableError
from schemas.layout import part_file_name, part_index
from schemas.prediction import CLASS_STATS, MASKS, plain, with_footer

CLASSES = 3
SCHEMAS = {"masks": MASKS, "class_stats": CLASS_STATS}


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


def test_row_files_are_opened_once_and_merged_files_once_for_each_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, images_a_file = [f"image-{number}" for number in range(250)], 2
    monkeypatch.setattr(row_files, "_FLUSH_IMAGES", images_a_file)
    rows = [(_mask_row(b"x") | {"image_id": one}, _class_rows(one)) for one in ids]
    opened, read = Counter[Slice](), table_parts._read_slice

    def counted(one: Slice) -> pa.RecordBatch:
        opened[one] += 1
        return read(one)

    monkeypatch.setattr(table_parts, "_read_slice", counted)
    for folder in ("spool", "out/masks", "out/class_stats"):
        (tmp_path / folder).mkdir(parents=True)
    schemas = {name: with_footer(schema, run_id="new") for name, schema in SCHEMAS.items()}
    part_bytes = row_bytes("masks", 1, CLASSES) * len(ids) // 12
    with beam.Pipeline(options=pipeline_options(IN_MEMORY)) as root:
        new = (
            root | beam.Create(rows) | beam.ParDo(row_files.WriteRowFiles(str(tmp_path / "spool")))
        )
        reused = root | "None" >> beam.Create([])
        _ = {"new": new, "reused": reused} | row_files.GatherRows(
            *(str(tmp_path / "out"), str(tmp_path / "spool"), schemas),
            *(part_bytes, 1 << 20, "new", CLASSES, {}),
        )
    assert set(opened.values()) == {1}
    parts = {name: len(list((tmp_path / "out" / name).iterdir())) for name in SCHEMAS}
    assert parts == {"masks": 13, "class_stats": 5}
    for name, count in parts.items():
        openings = Counter(one.file for one in opened if f".{name}." in one.file)
        # All row files together have as many rows as 12 parts, and so have the merged files.
        assert len(ids) // images_a_file < len(openings) <= len(ids) // images_a_file + 13
        merged = [file for file, times in openings.items() if times > 1]
        assert len(merged) > 8
        assert max(openings[file] for file in merged) <= count
    for name, schema in schemas.items():
        columns = [row for pair in rows for row in _rows_of(name, pair)]
        whole = pa.Table.from_pylist(columns, schema=plain(SCHEMAS[name]))
        index = pa.array([part_index(one, parts[name]) for one in whole["image_id"].to_pylist()])
        for at in range(parts[name]):
            place = tmp_path / "out" / name / part_file_name("new", at, parts[name])
            expected = tmp_path / "expected.parquet"
            write_part(expected, name, whole.filter(pc.equal(index, at)), schema, 1 << 20)
            assert place.read_bytes() == expected.read_bytes()


def _rows_of(name: str, pair: tuple[dict[str, Any], dict[str, list[Any]]]) -> list[dict[str, Any]]:
    mask, classes = pair
    if name == "masks":
        return [mask]
    return [
        dict(zip(classes, values, strict=True)) for values in zip(*classes.values(), strict=True)
    ]


def test_few_new_rows_beside_many_reused_ones_are_merged_to_one_file() -> None:
    files = [row_files.RowFile(f"file-{at}", {}) for at in range(20)]
    gather = row_files.GatherRows("", "", SCHEMAS, 1 << 20, 1 << 20, "new", CLASSES, {})
    for new_bytes, merged in ((1 << 19, 1), (4 << 20, 4)):
        totals = [300 << 20, 30 << 20, new_bytes]
        assert len({gather._merge_key(file, totals)[0] for file in files}) == merged


def test_rows_are_taken_from_a_published_file_by_their_ids(tmp_path: Path) -> None:
    ids = [f"image-{number}" for number in range(20)]
    whole = pa.Table.from_pylist(
        [_mask_row(b"x") | {"image_id": one} for one in ids], schema=plain(MASKS)
    )
    index = pa.array([part_index(one, 2) for one in ids])
    published = [str(tmp_path / f"{at}.parquet") for at in range(2)]
    for at, place in enumerate(published):
        schema = with_footer(MASKS, run_id="old")
        write_part(Path(place), "masks", whole.filter(pc.equal(index, at)), schema, 1 << 20)
    with pa.ipc.new_file(str(tmp_path / "new.arrow"), whole.schema) as writer:
        writer.write_table(whole.slice(0, 3))
    references = [Slice(str(tmp_path / "new.arrow"), 0), *((one, 1) for one in ids[10:])]
    rows = table_parts.gather("masks", references, published)
    assert sorted(rows["image_id"].to_pylist()) == sorted([*ids[:3], *ids[10:]])
    assert rows.schema.equals(plain(MASKS))
    Path(published[1]).unlink()
    with pytest.raises(UnavailableError, match="is gone: another job has published"):
        table_parts.gather("masks", references, published)


def test_row_groups_have_the_size_that_was_asked_for(tmp_path: Path) -> None:
    picture = bytes(range(256)) * 1024
    row = _mask_row(picture)
    ids = [f"{index:02d}" for index in reversed(range(10))]
    rows = pa.Table.from_pylist([row | {"image_id": one} for one in ids], schema=plain(MASKS))
    schema = with_footer(MASKS, run_id="new")
    write_part(tmp_path / "part.parquet", "masks", rows, schema, 3 * len(picture))
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
    assert row_bytes("masks", 8000, classes=150) > 150 * 150 * 4
    assert row_bytes("class_stats", 8000, classes=150) < 150 * 100
    assert row_bytes("masks", 2400, classes=13) < 3500
