"""The cookbook's queries, a query, an overlay and a report on tables in a store."""

import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cookbook import QUERIES
from jobs import Job
from store import Store

from analysis.tables import connect
from runtime import storage
from runtime.errors import UserError
from schemas.published import FILES_KEY, RUN_FILE, partitions


@pytest.fixture(scope="module")
def on_store(bucket: Store, tables: Path) -> str:
    return bucket.put(tables, "predictions")


@pytest.fixture(scope="module")
def both(on_store: str, tables: Path):
    with connect(on_store) as ours, connect(tables) as theirs:
        yield ours, theirs


def test_the_views_have_the_same_columns(both) -> None:
    ours, theirs = both
    names = theirs.sql("SHOW TABLES").fetchall()
    assert len(names) == 8
    assert ours.sql("SHOW TABLES").fetchall() == names
    for (name,) in names:
        describe = f"DESCRIBE {name}"
        assert ours.sql(describe).fetchall() == theirs.sql(describe).fetchall()


def _rounded(row: tuple) -> str:
    """A row as text; the last digits of a sum depend on the order of its terms."""
    return repr([round(value, 9) if isinstance(value, float) else value for value in row])


@pytest.mark.parametrize("sql", [pytest.param(sql, id=heading) for heading, sql in QUERIES])
def test_every_query_of_the_cookbook_gives_the_same(both, sql: str) -> None:
    ours, theirs = (one.sql(sql) for one in both)
    assert ours.columns == theirs.columns
    assert ours.types == theirs.types
    found, expected = (sorted(map(_rounded, one.fetchall())) for one in (ours, theirs))
    assert found == expected


def test_orphaned_files_are_not_read(bucket, tables: Path) -> None:
    place = bucket.put(tables, "orphans")
    (found, *_) = (path for path in tables.glob("masks/**/*.parquet"))
    orphan = found.relative_to(tables).with_name("orphan.parquet")
    storage.copy(str(found), storage.join(place, orphan.as_posix()))
    with connect(place) as ours, connect(tables) as theirs:
        for one in ("masks", "class_stats", "runs"):
            count = f"SELECT count(*) FROM {one}"
            assert ours.sql(count).fetchall() == theirs.sql(count).fetchall()


def test_rejects_are_read_from_the_former_folder(
    bucket: Store, tables: Path, tmp_path: Path
) -> None:
    """Two runs have a reject; the row of the first names the folder that rejects had before."""
    older = Path(shutil.copytree(tables, tmp_path / "older"))
    first, second, *_ = sorted(partitions(older))
    for partition in (first, second):
        (file,) = (older / "rejects" / partition).iterdir()
        schema = pq.read_schema(file)
        row = dict.fromkeys(schema.names, "truncated")
        pq.write_table(pa.Table.from_pylist([row], schema=schema), file)
    run = older / "runs" / first / RUN_FILE
    found = pq.ParquetFile(run).read()
    files = found.schema.metadata[FILES_KEY].replace(b'"rejects/', b'"_rejects/')
    pq.write_table(found.replace_schema_metadata({FILES_KEY: files}), run)
    former = older / "_rejects" / first
    former.parent.mkdir(parents=True)
    (older / "rejects" / first).rename(former)
    with connect(bucket.put(older, "older")) as database:
        rows = database.sql("SELECT model, version, source, code FROM rejects").fetchall()
    expected = [
        (*(one.partition("=")[2] for one in partition.split("/")), "truncated")
        for partition in (first, second)
    ]
    assert sorted(rows) == sorted(expected)


def test_commands_read_tables_on_a_store(
    on_store: str, tables: Path, job: Job, job_here: Job, tmp_path: Path
) -> None:
    def run(*arguments: str, start: Job = job_here) -> subprocess.CompletedProcess[str]:
        done = start(*arguments)
        assert done.returncode == 0, done.stderr
        return done

    sql = "SELECT source, count(*) FROM masks GROUP BY ALL ORDER BY 1"
    # One of the commands as a process, as a user runs it.
    ours, theirs = (
        run("analysis.query", sql, f"--predictions={place}", "--format=csv", start=start).stdout
        for place, start in ((on_store, job), (tables, job_here))
    )
    assert ours == theirs
    with connect(on_store) as database:
        ((name,),) = database.sql(
            "SELECT min(image_id) FROM masks WHERE source = 'driveA'"
        ).fetchall()
    chosen = ["--source=driveA", "--version=v1"]
    for command, output in (("overlay", "pictures"), ("report", "report.html")):
        ids = [f"--ids={name}", "--strip"] if command == "overlay" else []
        for place, folder in ((on_store, "ours"), (tables, "theirs")):
            target = f"--output={tmp_path / folder / output}"
            run(f"analysis.{command}", f"--predictions={place}", target, *chosen, *ids)
    files = [path.relative_to(tmp_path / "ours") for path in (tmp_path / "ours").rglob("*.*")]
    assert len(files) == 2
    for path in files:
        assert (tmp_path / "ours" / path).read_bytes() == (tmp_path / "theirs" / path).read_bytes()


def test_missing_tables_are_a_one_line_error(bucket: Store) -> None:
    with pytest.raises(UserError, match="there is no table of runs"):
        connect(bucket.uri("nothing"))
    storage.write_bytes(bucket.uri("empty/runs/model=m/other.txt"), b"")
    with pytest.raises(UserError, match="there is no published run"):
        connect(bucket.uri("empty"))
