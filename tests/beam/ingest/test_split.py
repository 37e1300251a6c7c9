"""Splits without leaks: frames of a sequence and near-duplicates, by any naming, in any order."""

import hashlib
import re
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import duckdb
import numpy as np
import pytest
from ingesting import run_ingest
from jobs import IN_MEMORY, TWO_WORKERS, Job
from PIL import Image

from beam.ingest.near_duplicates import NEAR_DUPLICATE_BITS
from beam.ingest.records import ProcessedPair
from beam.ingest.split import group_sequence, sequence_of
from flows.flink_demo import published_digests
from runtime.errors import UserError
from schemas.config import IngestConfig
from schemas.layout import SPLITS
from schemas.manifest import load_manifest
from schemas.sources import SourceRow

CONFIG = IngestConfig(name="small", height=32, width=48, resize="nearest", max_doubtful_fraction=1)
FRAMES = 200


def _write(folder: Path, names: dict[str, int], *, alike: bool = False) -> Path:
    """Writes a pair for each name; names with the same number show the same, unless ``alike``.

    Pictures of neighbouring numbers are as different as those of any others, or nearly the same.
    """
    for name, number in names.items():
        seed = number // 7 if alike else number
        random = np.random.default_rng(seed)
        image = random.integers(0, 256, (8, 9, 3), np.uint8)
        # One cell differs by the name, so that no file is the copy of another.
        image[0, 0] = np.frombuffer(hashlib.sha256(name.encode()).digest()[:3], np.uint8)
        mask = np.full((8, 9), 7, np.uint8)
        mask[:4] = number % 5
        for camera, pixels in (("CameraRGB", image), ("CameraSeg", mask)):
            path = folder / camera / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).resize((48, 32), Image.Resampling.NEAREST).save(path)
    return folder


def _splits(dataset: Path) -> dict[str, str]:
    """Split of each record."""
    rows = duckdb.sql(f"FROM '{dataset}/sources.parquet' SELECT id, split WHERE shard IS NOT NULL")
    return dict(rows.fetchall())


def _close_pairs(dataset: Path) -> list[tuple[str, str]]:
    """Pairs of records in different splits whose hashes are close, found by comparing all."""
    rows = duckdb.sql(
        f"FROM '{dataset}/sources.parquet' SELECT id, split, dhash WHERE shard IS NOT NULL"
    ).fetchall()
    return [
        (one[0], other[0])
        for one, other in combinations(rows, 2)
        if one[1] != other[1]
        and (int(one[2], 16) ^ int(other[2], 16)).bit_count() <= NEAR_DUPLICATE_BITS
    ]


NAMINGS: dict[str, Callable[[int], list[str]]] = {
    "steps of 1": lambda n: [f"{n:06d}"],
    "steps of 5": lambda n: [f"drive/{5 * n:06d}"],
    "steps of 20": lambda n: [f"frame{20 * n}"],
    "epoch": lambda n: [f"{1690000000000 + 100 * n + n % 7}"],
    "names of cameras": lambda n: [f"{n:06d}_left", f"{n:06d}_right"],
    "folders of cameras": lambda n: [f"left/{n:06d}", f"right/{n:06d}"],
    "unknown cameras": lambda n: [f"a/{1690000000 + n}.25", f"b/{1690000000 + n}.26"],
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_no_frame_has_a_neighbour_in_another_split(naming: str, tmp_path: Path) -> None:
    names = {name: n for n in range(FRAMES) for name in NAMINGS[naming](n)}
    _write(tmp_path / "raw", names)
    splits = _splits(run_ingest(tmp_path / "raw", tmp_path / "out", CONFIG))
    by_number: dict[int, set[str]] = {}
    for name, split in splits.items():
        by_number.setdefault(names[name], set()).add(split)
    # Each instant is in one split, and so are the instants on both sides of it.
    for number, found in by_number.items():
        assert len(found | by_number.get(number + 1, set())) == 1
    counts = {split: sum(of == {split} for of in by_number.values()) for split in SPLITS}
    assert all(0.05 * FRAMES < counts[split] < 0.2 * FRAMES for split in SPLITS[1:])
    assert len(splits) > 0.9 * len(names)


def test_near_duplicates_are_in_one_split_and_what_gives_way_is_listed(tmp_path: Path) -> None:
    """Pictures stay nearly the same for seven frames, so some blocks share theirs."""
    names = {f"{n:06d}": n for n in range(FRAMES)}
    _write(tmp_path / "raw", names, alike=True)
    folder = run_ingest(tmp_path / "raw", tmp_path / "out", CONFIG)
    assert _close_pairs(folder) == []
    manifest = load_manifest(folder)
    assert manifest.near_duplicates is not None
    assert manifest.near_duplicates.pairs_across_splits == 0
    splits = _splits(folder)
    rejects = duckdb.sql(
        f"FROM '{folder}/rejects.parquet' SELECT image_id, code, message"
    ).fetchall()
    assert len(rejects) == manifest.rejects["leak"] == FRAMES - manifest.records
    pattern = re.compile(
        r"(next to|near-duplicate \([0-3] of 64 bits differ\) of) (\d+), which is in (\w+)"
    )
    for name, code, message in rejects:
        found = pattern.fullmatch(message)
        assert code == "leak"
        assert found
        twin, split = found[2], found[3]
        assert abs(int(twin) - int(name)) == 1 or int(twin) // 7 == int(name) // 7
        # The twin stays, unless it gives way itself.
        assert splits.get(twin, split) == split
    assert any("bits differ" in message for _, _, message in rejects)

    # Without leaving out, that many leak.
    allowed = CONFIG.model_copy(update={"max_leak": 1})
    near = load_manifest(run_ingest(tmp_path / "raw", tmp_path / "all", allowed)).near_duplicates
    assert near is not None
    assert near.pairs_across_splits == len(_close_pairs(next((tmp_path / "all/small").iterdir())))
    assert near.pairs_across_splits > 10
    assert near.frames_beside > 10
    strict = CONFIG.model_copy(update={"max_leak": 0.01})
    with pytest.raises(UserError, match=r"more than --max_leak=0.01; nothing was published"):
        run_ingest(tmp_path / "raw", tmp_path / "none", strict)
    assert not list((tmp_path / "none/small").glob("[!.]*"))


def test_no_image_changes_its_split_when_others_come(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"validation": 0.2, "test": 0.2})
    names = {f"{20 * n:06d}": n for n in range(FRAMES)}
    few = {name: n for name, n in names.items() if n < 120}
    before = _splits(run_ingest(_write(tmp_path / "raw", few), tmp_path / "out", config))
    folder = run_ingest(_write(tmp_path / "raw", names), tmp_path / "out", config)
    after = _splits(folder)
    assert all(after.get(name, split) == split for name, split in before.items())
    fresh = run_ingest(tmp_path / "raw", tmp_path / "fresh", config)
    assert published_digests(fresh) == published_digests(folder)


@pytest.mark.slow
def test_workers_do_not_change_what_is_left_out(tmp_path: Path, job: Job) -> None:
    names = {f"left/{n:06d}": n for n in range(FRAMES)} | {f"b/{n:06d}": n for n in range(50)}
    raw = _write(tmp_path / "raw", names, alike=True)
    arguments = ("--name=small", "--height=32", "--width=48", "--max_doubtful_fraction=1")
    for name, workers in (("one", IN_MEMORY), ("two", TWO_WORKERS)):
        output = f"--output={tmp_path / name}"
        done = job("beam.ingest", f"--source={raw}", output, *arguments, *workers)
        assert done.returncode == 0, done.stderr
    assert published_digests(tmp_path / "one/small") == published_digests(tmp_path / "two/small")


def _in_folders(folder: Path) -> Path:
    names = {f"{('train', 'val', 'test')[min(n // 40, 2)]}/{n:06d}": n for n in range(60)}
    return _write(folder, names, alike=True)


def test_given_splits_are_kept_and_their_leaks_drawn(tmp_path: Path) -> None:
    raw = _in_folders(tmp_path / "raw")
    folder = run_ingest(raw, tmp_path / "out", CONFIG.model_copy(update={"test": 0}))
    splits = _splits(folder)
    assert len(splits) == 60
    given = {"train": "train", "val": "validation"}
    assert all(split == given[name.split("/")[0]] for name, split in splits.items())
    near = load_manifest(folder).near_duplicates
    assert near is not None
    close = _close_pairs(folder)
    assert near.pairs_across_splits == len(close) > 1
    assert near.images_across_splits == len({name for pair in close for name in pair})
    assert near.evaluation_images == len({b for pair in close for b in pair if "val" in b})
    assert near.frames_beside == 2
    assert "leaks.png" in (folder / "card.md").read_text()
    with Image.open(folder / "leaks.png") as picture:
        assert picture.width > 1000

    strict = CONFIG.model_copy(update={"test": 0, "given_splits": "strict"})
    with pytest.raises(UserError, match="--given_splits keep publishes them as they are"):
        run_ingest(raw, tmp_path / "strict", strict)
    anew = CONFIG.model_copy(update={"given_splits": "ignore"})
    other = run_ingest(raw, tmp_path / "anew", anew)
    assert _close_pairs(other) == []
    assert set(_splits(other).values()) == set(SPLITS)


def test_a_reject_that_is_known_is_the_same_as_a_new_one(tmp_path: Path) -> None:
    """It has no split, although its folder gives one."""
    names = {f"{split}/{n:06d}": n for split in ("train", "val", "test") for n in range(12)}
    raw = _write(tmp_path / "raw", names)
    (raw / "CameraRGB/train/000003.png").write_bytes(b"")
    config = CONFIG.model_copy(update={"max_reject_fraction": 0.1})
    first = run_ingest(raw, tmp_path / "out", config)
    _write(tmp_path / "raw", {"train/000100": 100})
    again, fresh = (run_ingest(raw, tmp_path / name, config) for name in ("out", "fresh"))
    assert again.name != first.name
    assert published_digests(again) == published_digests(fresh)


def test_what_was_not_given_gives_way_to_what_was(tmp_path: Path) -> None:
    names = {f"test/{n:06d}": n for n in range(0, 60, 21)} | {f"{n:06d}": n for n in range(60)}
    folder = run_ingest(_write(tmp_path / "raw", names, alike=True), tmp_path / "out", CONFIG)
    splits = _splits(folder)
    assert all(splits[name] == "test" for name in names if name.startswith("test"))
    assert _close_pairs(folder) == []


def test_an_empty_split_is_refused_with_the_options_that_do(tmp_path: Path) -> None:
    raw = _write(tmp_path / "raw", {f"{n:06d}": n for n in range(12)})
    with pytest.raises(UserError) as error:
        run_ingest(raw, tmp_path / "out", CONFIG)
    message = str(error.value)
    assert "split validation and test would be empty: 12 images make 2 groups" in message
    assert "nothing was published" in message
    assert not list((tmp_path / "out/small").glob("[!.]*"))
    found = re.search(r"--block_length (\d+) makes more", message)
    assert found
    assert "--validation 0 --test 0 does without" in message
    for update in ({"block_length": int(found[1])}, {"validation": 0, "test": 0}):
        manifest = load_manifest(
            run_ingest(raw, tmp_path / "out", CONFIG.model_copy(update=update))
        )
        counts = [info.records > 0 for info in manifest.splits.values()]
        assert counts == [True, "block_length" in update, "block_length" in update]
    given = _write(tmp_path / "given", {f"train/{n:06d}": n for n in range(30)})
    with pytest.raises(UserError, match="--given_splits ignore does not use the splits"):
        run_ingest(given, tmp_path / "out", CONFIG)


@pytest.mark.parametrize("numbers", [[24], [0, 1, 2]])
def test_a_few_pairs_make_a_dataset_with_the_options_that_the_error_names(
    numbers: list[int], tmp_path: Path
) -> None:
    raw = _write(tmp_path / "raw", {f"{n:06d}": n for n in numbers})
    # A list without splits gives none.
    rows = [f"CameraRGB/{n:06d}.png,CameraSeg/{n:06d}.png" for n in numbers]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,mask", *rows]) + "\n")
    few = CONFIG.model_copy(update={"block_length": 1})
    for config in (few, few.model_copy(update={"pairs": str(tmp_path / "pairs.csv")})):
        with pytest.raises(UserError, match="--validation 0 --test 0 does without") as error:
            run_ingest(raw, tmp_path / "out", config)
        assert "split train and validation would be empty" in str(error.value)
        assert "--given_splits" not in str(error.value)
        alone = config.model_copy(update={"validation": 0, "test": 0})
        assert load_manifest(run_ingest(raw, tmp_path / "out", alone)).records == len(numbers)
    given = _write(tmp_path / "given", {f"test/{n:06d}": n for n in numbers})
    with pytest.raises(UserError, match=r"train and validation would .* --given_splits") as error:
        run_ingest(given, tmp_path / "out", few)
    assert "does without" not in str(error.value)


def _grouped_splits(splits: dict[str, str | None], **options: str) -> dict[str, tuple]:
    """Group and split of each id, whose name ends with that of its group in the list."""
    config = CONFIG.model_copy(update=options)
    sequences: dict[str, list[ProcessedPair]] = {}
    for name, split in splits.items():
        group = name.partition("@")[2] or None
        row = SourceRow(name, name, name, 1, 1, 0.0, 0.0, split=split, group=group)
        pair = ProcessedPair(row, None)
        sequences.setdefault(sequence_of(pair, config), []).append(pair)
    return {
        record.pair.row.id: (record.group.name, record.split)
        for records in sequences.values()
        for record in group_sequence(records, config)
    }


def test_a_group_has_the_split_that_is_given_to_some_of_it() -> None:
    splits = {"1@a": "test", "2@a": None, "3@b": None, "4@c": "test", "5@c": "train", "6@c": None}
    found = _grouped_splits(splits)
    assert [split for _, split in found.values()] == ["test", "test", None, "test", "train", None]
    # A block has no name: its other frames are left out beside those of another split.
    assert list(_grouped_splits({"1": "test", "2": None}).values()) == [
        ("#0", "test"),
        ("#0", None),
    ]


def test_alternatives_of_a_pattern_name_groups() -> None:
    ids = dict.fromkeys(("a1_1", "a1_2", "b7_1", "b8_1", "c_1", "c_2"))
    found = _grouped_splits(ids, group=r"^(a\d)|^(b\d)|^c")
    names = [group for group, _ in found.values()]
    assert names == ["a1", "a1", "b7", "b8", "c_1", "c_2"]


def test_a_pattern_names_what_stays_together(tmp_path: Path) -> None:
    names = {f"street{n // 5:02d}_{n:06d}": n for n in range(FRAMES)}
    raw = _write(tmp_path / "raw", names)
    config = CONFIG.model_copy(update={"group": r"^(street\d+)_"})
    folder = run_ingest(raw, tmp_path / "out", config)
    streets: dict[str, set[str]] = {}
    for name, split in _splits(folder).items():
        streets.setdefault(name[:8], set()).add(split)
    assert all(len(found) == 1 for found in streets.values())
    assert len(_splits(folder)) == FRAMES
    groups = duckdb.sql(f"FROM '{folder}/sources.parquet' SELECT DISTINCT \"group\"").fetchall()
    assert {name for (name,) in groups} == set(streets)


def test_real_pairs_lose_few_and_leak_none(real_dataset: Path) -> None:
    assert _close_pairs(real_dataset) == []
    assert load_manifest(real_dataset).rejects == {"leak": 15}
    splits = _splits(real_dataset)
    for name, split in splits.items():
        drive, _, number = name.rpartition("_")
        following = f"{drive}_{int(number) + 1:04d}"
        assert splits.get(following, split) == split


def test_pictures_of_the_odd_namings(scenes: Path, tmp_path: Path) -> None:
    """Two cameras of one instant: copies in other files, which are near-duplicates as well."""
    for camera in ("CameraRGB", "CameraSeg"):
        for side in ("left", "right"):
            shutil.copytree(scenes / camera, tmp_path / "raw" / camera / side)
    for path in (tmp_path / "raw/CameraRGB/right").iterdir():
        with Image.open(path) as image:
            image.save(path, compress_level=1)
    splits = _splits(run_ingest(tmp_path / "raw", tmp_path / "out", CONFIG))
    for name, split in splits.items():
        other = name.replace("left", "right")
        assert splits.get(other, split) == split
