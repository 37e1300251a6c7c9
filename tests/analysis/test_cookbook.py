"""Every query and snippet of docs/cookbook.md, on small tables."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from cookbook import QUERIES, SNIPPETS

from analysis.tables import connect
from schemas.stats import ConfusionMatrix

CLASSES = 13


def _query(heading: str) -> str:
    (sql,) = (sql for name, sql in QUERIES if name == heading)
    return sql


@pytest.fixture(scope="module")
def plain(tables: Path):
    """The same rows as tables in memory, queried without an optimizer."""
    with connect(tables) as connection:
        for name in ("masks", "class_stats", "runs", "classes", "confusion", "rejects"):
            connection.execute(f"CREATE TABLE {name}_rows AS FROM {name}")
            connection.execute(f"CREATE OR REPLACE VIEW {name} AS FROM {name}_rows")
        connection.execute("PRAGMA disable_optimizer")
        yield connection


def test_the_cookbook_answers_more_than_a_dozen_questions() -> None:
    assert len({heading for heading, _ in QUERIES}) > 12


@pytest.mark.parametrize("sql", [pytest.param(sql, id=heading) for heading, sql in QUERIES])
def test_each_query_has_an_answer_that_no_optimizer_changes(database, plain, sql) -> None:
    rows = database.sql(sql).fetchall()
    assert rows
    # Threads add floats in any order, so the last digit may be rounded differently.
    assert rows == [pytest.approx(row, abs=2e-4) for row in plain.sql(sql).fetchall()]


@pytest.fixture
def matrix(database) -> ConfusionMatrix:
    """Confusion matrix of the test split, summed over the images."""
    rows = database.sql(
        "SELECT confusion FROM masks WHERE version = 'v1' AND source = 'lyft' AND split = 'test'"
    ).fetchall()
    return ConfusionMatrix(np.array(rows, np.int64).sum(0).reshape(CLASSES, CLASSES))


def test_classes_have_the_iou_of_their_matrix(database, matrix: ConfusionMatrix) -> None:
    rows = database.sql(_query("How good is each class on the test split?")).fetchall()
    names = [
        n
        for (n,) in database.sql(
            "SELECT class_name FROM classes WHERE source = 'driveA' ORDER BY class_id"
        ).fetchall()
    ]
    expected = dict(zip(names, matrix.iou(), strict=True))
    assert len(rows) == CLASSES
    for name, iou, _, true_pixels in rows:
        assert true_pixels == matrix.true_pixels[names.index(name)]
        assert np.isnan(expected[name]) if iou is None else iou == round(expected[name], 4)


def test_the_matrix_gives_accuracy_and_mean_iou(database, matrix: ConfusionMatrix) -> None:
    (row,) = database.sql(_query("Are these the figures of the training?")).fetchall()
    assert row == pytest.approx((matrix.pixel_accuracy(), matrix.mean_iou()), rel=1e-15)


def test_confusions_are_cells_off_the_diagonal(database, matrix: ConfusionMatrix) -> None:
    rows = database.sql(_query("What is taken for what?")).fetchall()
    off = np.sort(matrix.counts[~np.eye(CLASSES, dtype=bool)])[::-1]
    assert [pixels for _, _, pixels, _ in rows] == off[: len(rows)].tolist()
    shares = matrix.counts / np.maximum(matrix.true_pixels, 1)[:, None]
    assert all(np.isclose(shares, share, atol=5e-4).any() for *_, share in rows)


def test_worst_images_come_first(database) -> None:
    rows = database.sql(_query("Which images are worst?")).fetchall()
    expected = database.sql(
        "SELECT image_id, confusion FROM masks"
        " WHERE version = 'v1' AND source = 'lyft' AND split = 'test'"
    ).fetchall()
    means = {
        image: ConfusionMatrix(np.array(cells, np.int64).reshape(CLASSES, CLASSES)).mean_iou()
        for image, cells in expected
    }
    assert [row[0] for row in rows] == sorted(means, key=lambda image: (means[image], image))[:10]
    assert [row[1] for row in rows] == [round(means[row[0]], 3) for row in rows]


def test_class_share_drift_sums_to_zero(database) -> None:
    rows = database.sql(_query("Did the classes' shares drift between two runs?")).fetchall()
    before, after, drift = np.array([row[1:4] for row in rows]).T
    assert before.sum() == pytest.approx(1, abs=1e-3)
    assert after.sum() == pytest.approx(1, abs=1e-3)
    assert drift.sum() == pytest.approx(0, abs=1e-3)
    assert list(abs(drift)) == sorted(abs(drift), reverse=True)


def test_lineage_leads_to_an_existing_png(database, scenes: Path) -> None:
    rows = database.sql(_query("Where does a row come from?")).fetchall()
    lineage = dict(
        line.split(maxsplit=1) for (line,) in rows if not line.startswith(("MLf", "flow"))
    )
    assert Path(lineage["png"]).parent == scenes / "CameraRGB"
    assert Path(lineage["png"]).is_file()
    assert (Path(lineage["source"]) / "manifest.json").is_file()
    assert lineage["dataset"] == lineage["trained"].removeprefix("on ").strip()


def test_read_images_are_predicted_or_rejected(database) -> None:
    rows = database.sql(_query("Do all images add up?")).fetchall()
    assert len(rows) == 4
    for _, _, read, predicted, rejected, masks, classes in rows:
        assert read == predicted + rejected
        assert (masks, classes) == (predicted, predicted * CLASSES)


@pytest.fixture(scope="module")
def without_walls(tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tables, but no image has a wall, in truth or prediction."""
    copy = tmp_path_factory.mktemp("walls") / "outputs/predictions"
    shutil.copytree(tables, copy)
    for file in copy.glob("class_stats/**/*.parquet"):
        rows = pq.ParquetFile(file).read()
        is_wall = pc.equal(rows["class_name"].cast("string"), "Walls")
        for name, value in {"intersection": 0, "union": 0, "iou": None}.items():
            at = rows.schema.get_field_index(name)
            field = rows.schema.field(at)
            changed = pc.if_else(is_wall, pa.scalar(value, field.type), rows[name])
            rows = rows.set_column(at, field, changed)
        pq.write_table(rows, file)
    return copy


def test_a_class_that_does_not_occur_has_no_iou(without_walls: Path) -> None:
    with connect(without_walls) as connection:
        for heading, column in (
            ("How good is each class on the test split?", 1),
            ("Which classes did the new model version gain or lose?", 3),
        ):
            rows = connection.sql(_query(heading)).fetchall()
            assert [row[0] for row in rows if row[column] is None] == ["Walls"]
            assert rows[-1][0] == "Walls"


@pytest.mark.slow
@pytest.mark.parametrize("place", ["tables", "without_walls"])
@pytest.mark.parametrize("library", ["Polars", "pandas", "pyarrow"])
def test_libraries_agree_with_duckdb(
    library: str, place: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions: Path = request.getfixturevalue(place)
    monkeypatch.chdir(predictions.parents[1])
    names: dict = {}
    exec(SNIPPETS[library], names)
    queries = [sql for heading, sql in QUERIES if heading == "Without DuckDB"]
    for answer, sql in zip(("shares", "iou", "worst"), queries, strict=True):
        with connect(predictions) as connection:
            expected = connection.sql(sql).fetchall()
        found = _rows(names[answer])
        assert [key for key, _ in found] == [key for key, _ in expected]
        values = [np.nan if value is None else value for _, value in found]
        wanted = [np.nan if value is None else value for _, value in expected]
        assert values == pytest.approx(wanted, rel=1e-12, nan_ok=True)


def _rows(table) -> list[tuple]:
    if hasattr(table, "to_pylist"):
        return [tuple(row.values()) for row in table.to_pylist()]
    if hasattr(table, "rows"):
        return table.rows()
    return list(table.itertuples(index=False, name=None))


def test_hugging_face_opens_the_masks_as_images(
    database, tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tables.parents[1])
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names: dict = {}
    exec(SNIPPETS["The masks as an image dataset of Hugging Face"], names)
    masks = names["masks"]
    assert masks.num_rows == 120
    assert names["mask"].mode == "P"
    for row in masks.select(range(0, 120, 17)):
        ids = np.asarray(row["mask"])
        assert ids.shape == (row["height"], row["width"])
        counts = database.sql(
            f"SELECT pixel_count FROM class_stats WHERE run_id = '{row['run_id']}'"
            f" AND image_id = '{row['image_id']}' ORDER BY class_id"
        ).fetchall()
        assert np.bincount(ids.ravel(), minlength=CLASSES).tolist() == [n for (n,) in counts]
