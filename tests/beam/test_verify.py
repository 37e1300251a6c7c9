"""Published files are known to be intact: by their bytes, or on a store by when they were put."""

import os
import shutil
from pathlib import Path

import pytest
from ingesting import run_ingest
from store import Store

from beam import verify
from beam.shared import intact
from beam.shared.intact import has_digest
from runtime import storage
from runtime.errors import UserError


def test_a_file_of_this_machine_is_hashed_whatever_its_time(tmp_path: Path) -> None:
    names = ("same", "damaged", "missing", "last")
    places = {name: str(tmp_path / name) for name in names}
    for name in ("same", "damaged", "last"):
        (tmp_path / name).write_bytes(b"published")
    files = {places[name]: storage.sha256(b"published") for name in names[:3]}
    (tmp_path / "damaged").write_bytes(b"damaged")
    os.utime(tmp_path / "damaged", (0, 0))
    assert intact.intact_files(files, places["last"]) == {places["same"]}


def test_on_a_store_only_later_puts_are_hashed(
    bucket: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = bucket.uri("verify")
    names = ("old", "of the same second", "replaced", "put again", "missing")
    files = {storage.join(root, name): storage.sha256(b"published") for name in names}
    last = storage.join(root, "last")
    for place in [*files][:-1]:
        data = b"other" if place.endswith("replaced") else b"published"
        storage.write_bytes(place, data)
    storage.write_bytes(last, b"")
    times = dict(zip(names, (-2.0, -0.5, 60, 60), strict=False))
    published = storage.modified(last)
    hashed = []

    def modified(place: str) -> float:
        storage.read_bytes(place)
        return published + times.get(place.rpartition("/")[2], 0.0)

    def counting(place: str, sha256: str) -> bool:
        hashed.append(place.rpartition("/")[2])
        return has_digest(place, sha256)

    monkeypatch.setattr(storage, "modified", modified)
    monkeypatch.setattr(intact, "has_digest", counting)
    fine = intact.intact_files(files, last)
    assert {place.rpartition("/")[2] for place in fine} == {*names} - {"replaced", "missing"}
    assert sorted(hashed) == sorted(names[1:])


def test_everything_published_is_hashed_on_demand(
    scenes: Path, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_ingest(scenes, tmp_path / "datasets")
    count = len(os.listdir(folder)) - 1
    assert verify.main([str(tmp_path / "datasets")]) == f"{count} files are intact"
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == f"{folder}: {count} files, none damaged"
    assert verify.main([str(folder)]) == f"{count} files are intact"
    assert verify.main([str(tables)]).endswith(" files are intact")
    (folder / "card.md").unlink()
    (folder / "rejects.parquet").write_bytes(b"?")
    with pytest.raises(UserError, match=f"2 of {count} files are damaged or missing; remove them"):
        verify.main([str(tmp_path / "datasets")])
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2:] == [f"  {folder}/card.md", f"  {folder}/rejects.parquet"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds neither a dataset nor tables"):
        verify.main([str(tmp_path / "empty")])


def test_a_damaged_list_of_files_is_named_and_the_rest_is_hashed(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        shutil.copytree(dataset, tmp_path / name)
    (tmp_path / "a/manifest.json").write_text("{")
    (tmp_path / "b/card.md").unlink()
    run = tmp_path / "c/runs/model=x/version=v1/source=y/run.parquet"
    run.parent.mkdir(parents=True)
    run.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"3 of \d+ files are damaged or missing"):
        verify.main([str(tmp_path)])
    said = capsys.readouterr().err
    assert f"{tmp_path}/a/manifest.json: " in said
    assert "not a manifest" in said
    assert sorted(said.splitlines()[-3:]) == [
        f"  {tmp_path}/a/manifest.json",
        f"  {tmp_path}/b/card.md",
        f"  {run}",
    ]
