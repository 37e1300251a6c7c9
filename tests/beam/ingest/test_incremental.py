"""Running again: unchanged files are kept, damaged ones rebuilt, and dead jobs' files removed."""

import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ingesting import records_of, run_ingest
from jobs import SMALL

from beam.ingest import pipeline as ingest
from beam.ingest import records, split_rules
from flows.flink_demo import published_digests
from schemas.layout import SOURCES, SPLITS
from schemas.manifest import load_manifest


def test_nothing_changed_returns_without_a_pipeline(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_ingest(scenes, tmp_path)
    monkeypatch.setattr(ingest, "run_pipeline", lambda *_: pytest.fail("a pipeline ran"))
    assert run_ingest(scenes, tmp_path) == first


def _reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that collects the ids of the pairs that later runs decode."""
    made: list[str] = []
    original = records.make_record

    def counting(row, *others):
        made.append(row.id)
        return original(row, *others)

    monkeypatch.setattr(records, "make_record", counting)
    return made


def test_a_damaged_shard_is_rebuilt_alone(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_ingest(scenes, tmp_path)
    before = published_digests(folder)
    for damage in ("bits", "missing"):
        name = load_manifest(folder).shard_names("validation")[0]
        ids = {record.id for record in records_of(folder, "validation")}
        if damage == "bits":
            # Not in place, because a hard link may share the file with another version.
            (folder / "copy").write_bytes((folder / name).read_bytes()[:-1] + b"?")
            os.replace(folder / "copy", folder / name)
        else:
            (folder / name).unlink()
        made = _reads(monkeypatch)
        assert run_ingest(scenes, tmp_path) == folder
        assert published_digests(folder) == before
        assert set(made) == ids


def test_new_images_alone_are_decoded(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = copy / "CameraRGB/000_0039.png", copy / "CameraSeg/000_0039.png"
    kept = [path.read_bytes() for path in new]
    for path in new:
        path.unlink()
    first = run_ingest(copy, tmp_path / "out")
    for path, data in zip(new, kept, strict=True):
        path.write_bytes(data)
    made = _reads(monkeypatch)
    second = run_ingest(copy, tmp_path / "out")
    assert second != first
    assert made == ["000_0039"]
    fresh = run_ingest(copy, tmp_path / "fresh")
    assert published_digests(fresh) == published_digests(second)


def test_empty_shards_stay_in_their_split(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 64 shards for 32 records, or for 4: most hash ranges are empty.
    monkeypatch.setattr(split_rules, "shard_count", lambda *_: 64)
    raw = Path(shutil.copytree(scenes, tmp_path / "raw"))
    for folder in ("CameraRGB", "CameraSeg"):
        (raw / folder / "000_0039.png").unlink()
    run_ingest(raw, tmp_path / "out")
    shutil.copytree(scenes, raw, dirs_exist_ok=True)
    grown, fresh = run_ingest(raw, tmp_path / "out"), run_ingest(raw, tmp_path / "fresh")
    assert published_digests(grown) == published_digests(fresh)
    manifest = load_manifest(grown)
    assert [len(manifest.shard_names(split)) for split in SPLITS] == [64, 64, 64]
    assert all(f"-{shard.split}." in shard.name for shard in manifest.shards)
    # Some readers fail on a row group without rows; each other one holds the rows of one shard.
    footer = pq.read_metadata(grown / SOURCES)
    groups = [footer.row_group(at) for at in range(footer.num_row_groups)]
    assert all(group.num_rows for group in groups)
    assert len(groups) == sum(shard.records > 0 for shard in manifest.shards)


@pytest.mark.parametrize("name", ["rejects.parquet", "card.png", "dataset_info.json"])
def test_a_file_beside_the_shards_is_mended(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = run_ingest(scenes, tmp_path)
    before = published_digests(folder)
    (folder / name).unlink()
    made = _reads(monkeypatch)
    assert run_ingest(scenes, tmp_path) == folder
    assert published_digests(folder) == before
    assert made == []


def test_the_same_pairs_below_another_folder_are_another_version(
    scenes: Path, copy: Path, tmp_path: Path
) -> None:
    """They have the same fingerprint, but the tables and the card name where they are."""
    first, second = run_ingest(scenes, tmp_path / "out"), run_ingest(copy, tmp_path / "out")
    assert first != second
    manifests = load_manifest(first), load_manifest(second)
    assert [one.source for one in manifests] == [str(scenes), str(copy)]
    assert manifests[0].fingerprint == manifests[1].fingerprint
    assert run_ingest(scenes, tmp_path / "out") == first
    assert run_ingest(copy, tmp_path / "out") == second


def test_images_never_move_to_another_split(copy: Path, tmp_path: Path) -> None:
    # With large shares, each split has each class, so none is moved for a class.
    config = SMALL.model_copy(update={"validation": 0.3, "test": 0.3})
    first = run_ingest(copy, tmp_path / "out", config)
    where = {record.id: split for split in SPLITS for record in records_of(first, split)}
    for folder in ("CameraRGB", "CameraSeg"):
        for path in sorted((copy / folder).iterdir())[::3]:
            path.unlink()
    second = run_ingest(copy, tmp_path / "out", config)
    for split in SPLITS:
        assert all(where[record.id] == split for record in records_of(second, split))


def test_dead_staging_is_removed_and_the_living_left(scenes: Path, tmp_path: Path) -> None:
    from beam.shared.staging import staging_folder

    datasets = tmp_path / "small"
    with staging_folder(str(datasets)) as alive:
        dead = datasets / ".staging-dead"
        # The second run finds nothing changed, as after a job killed just after publishing.
        for _ in range(2):
            dead.mkdir()
            (datasets / ".staging-dead.lock").touch()
            folder = run_ingest(scenes, tmp_path)
            assert Path(alive).is_dir()
            assert not dead.exists()
    assert [path.name for path in datasets.iterdir()] == [folder.name]
