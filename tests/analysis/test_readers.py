"""Parquet readers open every table with default options and read the same values."""

import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from cookbook import SNIPPETS
from inference import run_infer

from analysis.tables import connect, select_run
from beam.infer.runs import TABLES
from schemas.config import InferConfig
from schemas.layout import folder_source_name

SOURCES = ("2024-05-01", "001", "0x1", "epoch", "true", "null", "None", "路面", "lyft", "0815")
READ = ("_2024-05-01", "_001", "_0x1", "_epoch", "_true", "_null", "_None", "路面", "lyft", "_0815")
"""What a reader finds in the column ``source``, in that order."""


@pytest.fixture(scope="module")
def hostile(trained, dataset: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of sources whose names look like dates, numbers, truth values and missing ones.

    One has a reject, and the others have none.
    """
    output = tmp_path_factory.mktemp("hostile")
    raw = tmp_path_factory.mktemp("pictures") / "0815"
    raw.mkdir()
    for path in sorted((scenes / "CameraRGB").iterdir())[:4]:
        shutil.copy(path, raw)
    (raw / "damaged.png").write_bytes(b"damaged")
    run_infer(trained, output, source=raw)
    for name in SOURCES[:-1]:
        config = InferConfig(split="test", source_name=name)
        assert run_infer(trained, output, config, dataset=dataset) == output
    return output


Columns = dict[str, list[Any]]


def _duckdb(folder: Path) -> Columns:
    with duckdb.connect() as connection:
        found = connection.sql(f"FROM read_parquet('{folder}/**/*.parquet')")
        return found.to_arrow_table().to_pydict()


def _polars(folder: Path) -> Columns:
    return pl.scan_parquet(folder).collect().to_dict(as_series=False)


def _pandas(folder: Path) -> Columns:
    found = pd.read_parquet(folder)
    assert found.columns.is_unique
    return {name: [None if one is pd.NA else one for one in found[name]] for name in found}


def _pyarrow(folder: Path) -> Columns:
    return pq.read_table(folder).to_pydict()


def _dataset(folder: Path) -> Columns:
    return ds.dataset(folder, partitioning="hive").to_table().to_pydict()


READERS = (_duckdb, _polars, _pandas, _pyarrow, _dataset)
WITHOUT_ROWS = {"confusion": {"_0815"}, "rejects": set(READ[:-1])}
"""Sources of which a table holds no rows: without truth, and without rejects."""


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("read", READERS)
def test_partitions_are_text_everywhere(
    read: Callable[[Path], Columns], table: str, hostile: Path
) -> None:
    found = read(hostile / table)
    assert len(found["run_id"]) == pq.read_table(hostile / table).num_rows
    assert set(found["source"]) == set(READ) - WITHOUT_ROWS.get(table, set())
    assert set(found["version"]) == {"v1"}
    assert set(found["model"]) == {"small-unet"}


@pytest.mark.parametrize("read", READERS)
def test_rows_are_the_same_in_every_reader(read: Callable[[Path], Columns], hostile: Path) -> None:
    def rows(found: Columns) -> list[tuple]:
        columns = ("source", "image_id", "class_id", "class_name", "pixel_count", "pixel_fraction")
        return sorted(zip(*(found[name] for name in columns), strict=True))

    expected = rows(_pyarrow(hostile / "class_stats"))
    assert len(expected) == len(SOURCES) * 4 * 13
    assert rows(read(hostile / "class_stats")) == expected


def test_hugging_face_opens_every_table(
    hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import load_dataset

    for table in TABLES:
        found = load_dataset("parquet", data_files=f"{hostile}/{table}/**/*.parquet", split="train")
        # It does not read partitions from paths.
        expected = pq.read_table(hostile / table).column_names
        assert found.column_names == [
            one for one in expected if one not in ("model", "version", "source")
        ]
        assert found.num_rows == pq.read_table(hostile / table).num_rows


def test_unescaped_source_name_selects_its_run(hostile: Path) -> None:
    for name, read in zip(SOURCES, READ, strict=True):
        for chosen in (name, read):
            args = Namespace(source=chosen, partition=None, model=None, version=None)
            with connect(hostile) as connection:
                assert select_run(connection, args)["source"] == read


def test_a_folders_name_selects_its_run_alone() -> None:
    """Sources 001 and _001."""
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE runs AS"
            " SELECT 'm' AS model, 'v1' AS version, unnest(['_001', '__001']) AS source"
        )
        for folder in ("_001", "__001"):
            args = Namespace(source=None, partition=f"source={folder}", model=None, version=None)
            assert select_run(connection, args)["source"] == folder


def test_a_folder_with_other_signs_selects_its_run() -> None:
    folder = "it's 100% <b>&é"
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE runs AS SELECT 'm' AS model, 'v1' AS version, unnest(?) AS source",
            [["a", folder_source_name(f"/data/{folder}")]],
        )
        args = Namespace(source=folder, partition=None, model=None, version=None)
        assert select_run(connection, args)["source"].startswith("it-s-100-b-é-")


def test_cookbook_snippet_prints_all_runs(
    hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/predictions").symlink_to(hostile)
    monkeypatch.chdir(tmp_path)
    exec(SNIPPETS["The same in every reader"], {})
    printed = capsys.readouterr().out
    # By DuckDB, pandas and pyarrow; Polars shows the first and the last rows.
    assert all(printed.count(name) >= 3 for name in READ)
    assert f"num_rows: {len(READ)}" in printed
