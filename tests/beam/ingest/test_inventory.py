"""An inventory in place of listing the source: the same records, whoever wrote it."""

import csv
import gzip
import io
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingesting import run_ingest
from jobs import IN_MEMORY, SMALL, TWO_WORKERS
from store import Store

from beam.ingest import pipeline as ingest
from beam.runners.run import pipeline_options
from runtime import listing, storage
from runtime.errors import UserError
from runtime.inventory import read_inventory
from schemas.manifest import Manifest, load_manifest


def _files(scenes: Path) -> list[tuple[str, int, datetime]]:
    return [
        (file.path, file.size, datetime.fromtimestamp(int(file.modified), UTC))
        for file in listing.walk(scenes)
    ]


def _with(inventory: Path | str, **others: object) -> object:
    return SMALL.model_copy(update={"inventory": str(inventory), **others})


def _shards(manifest: Manifest) -> list[tuple[str, str]]:
    return [(shard.name, shard.sha256) for shard in manifest.shards]


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet"])
def test_tables_give_the_same_records(
    suffix: str, scenes: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, inventory = ("Key", "Size", "last_modified_date"), tmp_path / f"files.{suffix}"
    columns = list(zip(*_files(scenes), strict=True))
    if suffix == "parquet":
        pq.write_table(pa.table(dict(zip(names, columns, strict=True))), inventory)
    else:
        text = io.StringIO()
        csv.writer(text).writerows([names, *zip(*columns, strict=True)])
        data = text.getvalue().encode()
        inventory.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    monkeypatch.setattr(listing, "walk_all", lambda _: pytest.fail("the source was listed"))
    found = run_ingest(scenes, tmp_path / "out", _with(inventory))
    assert _shards(load_manifest(found)) == _shards(load_manifest(dataset))
    # Tomorrow's has another name; nothing else has changed.
    inventory = inventory.rename(tmp_path / f"other.{suffix}")
    monkeypatch.setattr(ingest, "run_pipeline", lambda *_: pytest.fail("a pipeline ran"))
    assert run_ingest(scenes, tmp_path / "out", _with(inventory)) == found


def test_an_s3_inventory(bucket: Store, scenes: Path, dataset: Path, tmp_path: Path) -> None:
    """Two tables without headers, encoded keys, an old version, a deleted object, other folders."""
    raw = bucket.put(scenes, "in stock/raw")
    rows = [
        ("lyft", f"in+stock/raw/{path}", "true", "false", size, f"{time:%Y-%m-%dT%H:%M:%SZ}")
        for path, size, time in _files(scenes)
    ]
    image = rows[0][1]
    rows += [
        ("lyft", image, "false", "false", 1, "2020-01-01T00:00:00.000Z"),
        ("lyft", image.replace("000_0000", "gone"), "true", "true", "", ""),
        ("lyft", "elsewhere/CameraRGB/000_0000.png", "true", "false", 1, ""),
        ("lyft", "in+stock/raw/CameraRGB/", "true", "false", 0, ""),
    ]
    tables = []
    for number, part in enumerate((rows[::2], rows[1::2])):
        text = io.StringIO()
        csv.writer(text, quoting=csv.QUOTE_ALL).writerows(part)
        tables.append(f"inventory/data/{number}.csv.gz")
        storage.write_bytes(bucket.uri(tables[-1]), gzip.compress(text.getvalue().encode()))
    manifest = {
        "sourceBucket": "lyft",
        "fileFormat": "CSV",
        "fileSchema": "Bucket, Key, IsLatest, IsDeleteMarker, Size, LastModifiedDate",
        "files": [{"key": key, "size": 1, "MD5checksum": ""} for key in tables],
    }
    inventory = bucket.uri("inventory/manifest.json")
    storage.write_bytes(inventory, json.dumps(manifest).encode())
    for options in (IN_MEMORY, TWO_WORKERS):
        output = tmp_path / str(len(options))
        found = ingest.run(raw, str(output), _with(inventory), pipeline_options(options))
        assert _shards(load_manifest(found)) == _shards(load_manifest(dataset))
        assert load_manifest(found).files_listed == 80


def test_paths_as_find_prints_them_and_columns_of_other_tools(
    scenes: Path, dataset: Path, tmp_path: Path
) -> None:
    inventory = tmp_path / "files.parquet"
    paths, sizes, times = zip(*_files(scenes), strict=True)
    columns = {
        "path": [f"./{path}" for path in paths[::2]] + [f"{scenes}/{path}" for path in paths[1::2]],
        "name": [path.rpartition("/")[2] for path in (*paths[::2], *paths[1::2])],
        "size": [*sizes[::2], *sizes[1::2]],
        "modified": [time.date() for time in (*times[::2], *times[1::2])],
    }
    for column, more in zip(columns.values(), ("../x.png", "x.png", 1, None), strict=True):
        column.append(more)
    pq.write_table(pa.table(columns), inventory)
    found = load_manifest(run_ingest(scenes, tmp_path / "out", _with(inventory)))
    assert _shards(found) == _shards(load_manifest(dataset))
    assert found.files_listed == 80


def test_paths_are_below_a_source_on_a_store_and_keys_whole(tmp_path: Path) -> None:
    table = tmp_path / "files.csv"
    for text in ("path,size\na/1.png,5\n", "key,size\nraw/a/1.png,5\nraw2/a/1.png,5\n"):
        table.write_text(text)
        (found,) = read_inventory(str(table), str(table), "s3://lyft/raw")
        assert (found.path, found.size) == ("a/1.png", 5)


def test_what_is_no_longer_there_is_a_reject(copy: Path, tmp_path: Path) -> None:
    inventory = tmp_path / "files.csv"
    rows = [f"{path},{size}" for path, size, _ in _files(copy)]
    inventory.write_text("\n".join(["path,size", *rows]))
    (copy / "CameraRGB/000_0007.png").unlink()
    with open(copy / "CameraSeg/000_0008.png", "ab") as file:
        file.write(b"more")
    os.utime(copy / "CameraSeg/000_0009.png", (1, 1))
    found = run_ingest(copy, tmp_path / "out", _with(inventory, max_reject_fraction=0.1))
    assert load_manifest(found).rejects == {"changed": 1, "unreadable": 1}


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("none.csv", None, "there is no such file"),
        ("files.txt", "path,size\n", "expected a name that ends in .csv"),
        ("files.csv", "file,size\na,1\n", r"expected the columns path \(or key, or name\) and si"),
        ("files.csv", "path,size\na,large\n", "cannot be read: invalid literal for int"),
        (
            "files.csv",
            "path,size\nother/a.png,1\n",
            "as --inventory '.*files.csv' says, holds no p",
        ),
        ("files.csv", "path,size,size\na,1,2\n", "expected one column size, found several"),
        ("files.csv", "path,size\na\0,1\n", "is not the name of a file"),
        ("manifest.json", '{"files": [{}], "fileFormat": "CSV", "fileSchema": ""}', "files.0.key"),
        ("manifest.json", "[]", "expected the manifest.json of an S3 Inventory, with file"),
        ("manifest.json", "{", "cannot be read: Expecting"),
    ],
)
def test_mistakes_are_named(
    name: str, text: str | None, complaint: str, scenes: Path, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=complaint):
        run_ingest(scenes, tmp_path / "out", _with(tmp_path / name))
