"""Rows, hashes and reuse of pairs; the data card; the progress line."""

import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from ingesting import run_ingest
from jobs import SMALL
from PIL import Image

from beam.ingest.card import card_picture
from beam.ingest.incremental import PublishedShards, previous_pairs
from beam.ingest.near_duplicates import NEAR_DUPLICATE_BITS
from beam.ingest.record_files import RecordRef
from beam.ingest.records import (
    ProcessedPair,
    difference_hash,
    read_pair,
    reuse_if_unchanged,
    row_of,
)
from beam.shared.pairing import Pair
from beam.shared.progress import progress_line
from runtime.errors import RejectError
from runtime.listing import SourceFile
from schemas.manifest import load_manifest
from schemas.sources import SourceRow, rows_of, source_table


def _row(name: str, **values: str) -> SourceRow:
    return SourceRow(name, f"{name}.png", f"{name}.png", 1, 1, 0.0, 0.0, **values)


def test_rows_survive_their_table() -> None:
    rows = [_row(f"{i:05d}", split="train", dhash="0" * 16) for i in range(2_500)]
    table = source_table(reversed(rows))
    assert list(rows_of(table)) == rows
    assert source_table([]).num_rows == 0


def test_alike_pictures_have_close_hashes() -> None:
    random = np.random.default_rng(0)
    cells = random.integers(0, 256, (8, 9, 3), np.uint8)
    image = np.asarray(Image.fromarray(cells).resize((128, 96), Image.Resampling.BICUBIC))
    brighter = np.clip(image.astype(int) + 10, 0, 255).astype(np.uint8)
    other = image[:, ::-1]

    def distance(a: np.ndarray, b: np.ndarray) -> int:
        return (int(difference_hash(a), 16) ^ int(difference_hash(b), 16)).bit_count()

    assert distance(image, image) == 0
    assert distance(image, brighter) <= NEAR_DUPLICATE_BITS
    assert distance(image, other) > 20


def _pair(folder: Path, name: str) -> Pair:
    files = []
    for camera in ("CameraRGB", "CameraSeg"):
        path = folder / camera / name
        status = path.stat()
        files.append(SourceFile(f"{camera}/{name}", status.st_size, status.st_mtime))
    return Pair(Path(name).stem, *files)


def test_what_is_known_holds_while_the_files_look_the_same(copy: Path) -> None:
    row = row_of(_pair(copy, "000_0007.png"), SMALL)
    record = RecordRef("shard", 0, 1)
    known = ProcessedPair(replace(row, image_sha256="a", split="test", group="old"), record)
    again = reuse_if_unchanged(row, known)
    assert again is not None
    assert (again.row.image_sha256, again.row.split, again.row.group) == ("a", None, None)
    os.utime(copy / "CameraSeg/000_0007.png", (2, 2))
    assert reuse_if_unchanged(row_of(_pair(copy, "000_0007.png"), SMALL), known) is None


def test_a_file_that_is_gone_or_changes_meanwhile_is_no_record(copy: Path) -> None:
    image = copy / "CameraRGB/000_0000.png"
    row = row_of(_pair(copy, "000_0000.png"), SMALL)
    assert read_pair(row, str(copy), SMALL)[0] == image.read_bytes()
    # The same length as before, so that only its bytes and its modification time differ.
    data = image.read_bytes()
    image.write_bytes(data[:-20] + b"x" + data[-19:])
    os.utime(image, (2, 2))
    with pytest.raises(RejectError, match="changed while the job ran"):
        read_pair(row, str(copy), SMALL)
    image.unlink()
    with pytest.raises(RejectError) as error:
        read_pair(row, str(copy), SMALL)
    assert error.value.code == "unreadable"


def test_a_table_of_another_kind_is_not_known(dataset: Path, tmp_path: Path) -> None:
    shutil.copy(dataset / "sources.parquet", tmp_path)
    for path in dataset.glob("*.tfrecord-*"):
        shutil.copy(path, tmp_path)
    previous = PublishedShards.of(str(tmp_path), load_manifest(dataset))
    shards = [*(one.name for one in previous.shards.values()), None]
    found = [pair for shard in shards for pair in previous_pairs(shard, previous)]
    assert len(dict(found)) == len(found) == 40
    table = pq.read_table(tmp_path / "sources.parquet")
    for other in (table.drop_columns("dhash"), table.set_column(0, "id", table["image_size"])):
        pq.write_table(other, tmp_path / "sources.parquet")
        assert not [pair for shard in shards for pair in previous_pairs(shard, previous)]


@pytest.mark.parametrize("shape", [(1, 900), (900, 1)])
def test_a_card_shows_sources_of_any_shape(shape: tuple[int, int], tmp_path: Path) -> None:
    for index in range(2):
        for folder, value in (("CameraRGB", 9), ("CameraSeg", 0)):
            (tmp_path / "raw" / folder).mkdir(parents=True, exist_ok=True)
            pixels = np.full((*shape, 3), [index, value, value], np.uint8)
            Image.fromarray(pixels).save(tmp_path / "raw" / folder / f"{index}.png")
    config = SMALL.model_copy(
        update={
            "height": 0,
            "width": 0,
            "max_doubtful_fraction": 1.0,
            "validation": 0.0,
            "test": 0.0,
        }
    )
    folder = run_ingest(tmp_path / "raw", tmp_path / "out", config)
    with Image.open(folder / "card.png") as card:
        assert card.width == 1000
        assert card.height < 2000
    # The constant images and masks.
    with Image.open(folder / "doubtful.png") as picture:
        assert picture.height < 4 * 2 * 320 + 200


def test_long_names_leave_the_bars_of_the_card(dataset: Path) -> None:
    manifest = load_manifest(dataset)
    labels = [
        label.model_copy(update={"name": f"{label.name} and all that belongs to it"})
        for label in manifest.taxonomy.classes
    ]
    taxonomy = manifest.taxonomy.model_copy(update={"classes": tuple(labels)})
    bars = [
        np.asarray(card_picture(str(dataset), one).crop((138, 44, 600, 500)))
        for one in (manifest, manifest.model_copy(update={"taxonomy": taxonomy}))
    ]
    assert np.array_equal(*bars)


def test_the_data_card(dataset: Path) -> None:
    text = (dataset / "card.md").read_text()
    manifest = load_manifest(dataset)
    assert text.startswith(f"# small {manifest.fingerprint[:12]}\n")
    for line in ("| train | 32 | 32 |", "| none | 0 |", "![Class shares"):
        assert line in text
    road = manifest.splits["train"].class_pixels["Roads"] / (32 * 32 * 48)
    assert f"| 7 Roads | {road:.3%} |" in text
    picture = np.asarray(Image.open(dataset / "card.png").convert("RGB"))
    assert picture.shape[1] == 1000
    # Each bar has its class's colour; its length is the class's share relative to the largest one.
    shares = [
        pixels / sum(info.class_pixels.values())
        for info in manifest.splits.values()
        for pixels in info.class_pixels.values()
    ]
    bar = (picture[:500] == (128, 64, 128)).all(axis=-1).sum(axis=1).max()
    assert bar == pytest.approx(380 * road / max(shares), abs=3)


def test_progress_in_a_line() -> None:
    assert progress_line(Counter(), 10, "pairs") == "starting workers"
    counts = Counter(
        {"rejected.truncated": 2, "read": 3_000, "bytes": 3 << 20, "written": 900, "left out": 9}
    )
    assert progress_line(counts, 4_000, "pairs") == (
        "3,002 of 4,000 pairs done (75%), 3,000 read, 9 left out, 900 written, 3.0 MiB, "
        "2 rejected as truncated"
    )
