"""Views, formats of output, the query command and the SQL shell."""

import csv
import io
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from jobs import ROOT, Job

from analysis import query, shell
from analysis.tables import connect
from runtime.errors import UserError

VIEWS = [
    *("_rejects", "class_stats", "classes", "confusion", "image_quality", "masks", "rejects"),
    "runs",
]


def test_views_have_partition_columns_and_run_id(tables: Path) -> None:
    with connect(tables) as database:
        assert [name for (name,) in database.sql("SHOW TABLES").fetchall()] == VIEWS
        for view in VIEWS:
            columns = database.sql(f"FROM {view}").columns
            assert {"model", "version", "source", "run_id"} <= set(columns)


def test_a_window_over_one_partition_sees_no_other(tables: Path) -> None:
    # On its own, DuckDB 2.0.0 sums the true pixels of both versions here.
    with connect(tables) as database:
        rows = database.sql(
            "SELECT DISTINCT true_class_id, true_pixels FROM (SELECT *, sum(pixel_count)"
            " OVER (PARTITION BY true_class_id) AS true_pixels FROM confusion"
            " WHERE version = 'v1' AND source = 'lyft' AND split = 'test')"
        ).fetchall()
    assert sum(pixels for _, pixels in rows) == 4 * 32 * 48


def test_image_quality_has_one_row_an_image(tables: Path) -> None:
    with connect(tables) as database:
        rows = database.sql(
            "SELECT run_id, image_id, mean_iou, worst_class, worst_iou, classes_found,"
            " class_entropy FROM image_quality"
        ).fetchall()
        assert len(rows) == 120
        for run_id, image_id, mean_iou, worst_class, worst_iou, found, entropy in rows[::11]:
            classes = database.sql(
                "SELECT class_name, iou, pixel_count, pixel_fraction FROM class_stats"
                f" WHERE run_id = '{run_id}' AND image_id = '{image_id}'"
            ).fetchall()
            ious = {name: iou for name, iou, *_ in classes if iou is not None}
            assert mean_iou == pytest.approx(np.mean(list(ious.values())))
            assert worst_iou == min(ious.values()) == ious[worst_class]
            assert found == sum(count > 0 for _, _, count, _ in classes)
            shares = np.array([share for *_, share in classes if share])
            assert entropy == pytest.approx(-(shares * np.log2(shares)).sum())


def test_output_formats(tables: Path) -> None:
    sql = "FROM runs SELECT version, source, images_read ORDER BY ALL"
    with connect(tables) as database:
        table, lines, text = (
            query.run_query(database, sql, form) for form in ("table", "csv", "json")
        )
        masks = query.run_query(database, "FROM masks SELECT mask LIMIT 1", "json")
        undefined = query.run_query(
            database,
            "SELECT 'nan'::DOUBLE AS none, 1.5::DOUBLE AS known, {list: ['nan'::DOUBLE]} AS inner",
            "json",
        )
    assert "│ v1      │ driveA  │          20 │" in table
    assert list(csv.reader(io.StringIO(lines)))[:2] == [
        ["version", "source", "images_read"],
        ["v1", "driveA", "20"],
    ]
    assert [json.loads(line)["images_read"] for line in text.splitlines()] == [20, 20, 40, 40]
    assert json.loads(masks)["mask"]["bytes"].startswith("89504e47")
    assert undefined == '{"none": null, "known": 1.5, "inner": {"list": [null]}}'


def test_csv_has_no_python_in_it(tables: Path) -> None:
    sql = "SELECT mask, mask.bytes, [1, 2] AS list, ['a''b'] AS text FROM masks LIMIT 1"
    with connect(tables) as database:
        text = query.run_query(database, sql, "csv")
        ((mask, data),) = database.sql("SELECT mask, mask.bytes FROM masks LIMIT 1").fetchall()
    found = list(csv.reader(io.StringIO(text)))[1]
    assert json.loads(found[0]) == {"bytes": data.hex(), "path": mask["path"]}
    assert found[1:] == [data.hex(), "[1, 2]", '["a\'b"]']


def test_json_has_every_column_and_every_kind_of_value(tables: Path) -> None:
    def result(sql: str) -> dict:
        return json.loads(query.run_query(database, sql, "json"))

    with connect(tables) as database:
        assert result("SELECT 1 AS a, 2 AS a, 3 AS a_1") == {"a": 1, "a_1": 2, "a_1_1": 3}
        joined = result(
            "SELECT masks.image_id, stats.image_id, masks.mean_confidence, stats.mean_confidence"
            " FROM masks JOIN class_stats AS stats USING (run_id) LIMIT 1"
        )
        assert len(joined) == 4
        assert result("SELECT 0.25 AS d, 3::DECIMAL(9, 2) AS i, [1.5] AS l") == {
            "d": 0.25,
            "i": 3,
            "l": [1.5],
        }
        maps = "SELECT map([1], ['a']) AS m, map([DATE '2024-05-01'], [NULL]) AS d"
        assert result(maps) == {"m": {"1": "a"}, "d": {"2024-05-01": None}}


def test_pandas_options_of_the_help_keep_class_none(tables: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        query.main(["--help"])
    options = "keep_default_na=False, na_values=['']"
    assert options in " ".join(capsys.readouterr().out.split())
    with connect(tables) as database:
        sql = "SELECT class_name, CASE WHEN class_id > 0 THEN 0.5 END AS iou FROM classes"
        text = query.run_query(database, f"{sql} WHERE source = 'driveA' ORDER BY class_id", "csv")
    found = eval(f"pd.read_csv(io.StringIO(text), {options})", {"pd": pd, "io": io, "text": text})
    assert found["class_name"][0] == "None"
    assert found["iou"].dtype == "float64"
    assert found["iou"].isna().tolist() == [True] + [False] * 12


def test_query_errors_are_one_line(tables: Path, tmp_path: Path) -> None:
    with connect(tables) as database:
        for sql, complaint in (
            ("SELEC 1", "syntax error"),
            ("SELECT nothing FROM masks", '"nothing" not found'),
            ("FROM nowhere", "nowhere does not exist"),
            ("SELECT error('line\nbreak')", "line break"),
        ):
            with pytest.raises(UserError, match=complaint) as caught:
                query.run_query(database, sql)
            assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="there is no table of runs"):
        connect(tmp_path)
    older = Path(shutil.copytree(tables, tmp_path / "older"))
    shutil.rmtree(older / "classes")
    with pytest.raises(UserError, match=r"classes.*run `python -m beam\.infer` again"):
        connect(older)
    damaged = next(Path(shutil.copytree(tables, tmp_path / "damaged")).glob("runs/**/*.parquet"))
    damaged.write_bytes(b"damaged")
    with pytest.raises(UserError, match=rf"{damaged.name}.*run `python -m beam\.infer` again"):
        connect(tmp_path / "damaged")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handler of SIGINT; there is none if a shell starts the tests in background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_a_query(monkeypatch, tables: Path, capsys) -> None:
    def interrupt() -> None:
        # A real signal, which wakes the main thread.
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    class Busy:
        """A connection with a query that only the second ``interrupt`` ends."""

        def __init__(self) -> None:
            self._calls, self.ended = count(1), threading.Event()

        def interrupt(self) -> None:
            if next(self._calls) == 2:
                self.ended.set()

        def extract_statements(self, _: str) -> None:
            interrupt()
            assert self.ended.wait(60), "the query was not interrupted"

    busy = Busy()
    with pytest.raises(KeyboardInterrupt):
        query.run_query(busy, "SELECT 1")
    assert busy.ended.is_set()

    def start(thread: threading.Thread) -> None:
        started(thread)
        raise KeyboardInterrupt

    started = threading.Thread.start
    busy = Busy()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        patch.setattr(signal, "pthread_kill", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            query.run_query(busy, "SELECT 1")
    assert busy.ended.is_set()
    monkeypatch.setattr(shell, "run_query", lambda _, sql: query.run_query(Busy(), sql))
    monkeypatch.setattr(shell, "_read_statements", lambda: iter(["SELECT 1;"]))
    assert shell.main([f"--predictions={tables}"]) == ""
    assert "interrupted" in capsys.readouterr().out


def test_each_of_several_statements_is_answered(tables: Path) -> None:
    sql = "SET threads = 1; SELECT 'ü;' AS a; -- ;\nSELECT 2 AS b; -- the end\n/* ü */"
    with connect(tables) as database:
        assert query.run_query(database, sql, "json") == '{"a": "ü;"}\n{"b": 2}'
        assert "ü;" in (table := query.run_query(database, sql))
        assert "│     2 │" in table
        assert query.run_query(database, "SET threads = 1", "csv") == ""
        assert query.run_query(database, "-- nothing") == ""


def test_query_command(job: Job, tables: Path, tmp_path: Path) -> None:
    # A folder's name is not treated as a pattern.
    strange = Path(shutil.copytree(tables, tmp_path / "a [1]*"))
    done = job(
        "analysis.query", f"--predictions={strange}", "--format=csv", "SELECT count(*) n FROM masks"
    )
    assert (done.returncode, done.stdout) == (0, "n\n120\n"), done.stderr
    done = job("analysis.query", f"--predictions={tables}", "SELECT")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def test_shell_continues_after_an_error(tables: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "analysis.shell", f"--predictions={tables}"],
        cwd=ROOT,
        input="SELECT count(*) AS images\nFROM masks;\n\nSELEC;\nSELECT 'still' || ' here';\n"
        "SELECT 'the ' || 'end'",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert "│    120 │" in done.stdout
    assert "error: query: Parser Error" in done.stdout
    assert "still here" in done.stdout
    assert "the end" in done.stdout
