import shutil
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from ingesting import run_ingest
from jobs import SMALL
from PIL import Image

from beam import records
from beam.metadata import NEAR_DUPLICATE_BITS, near_duplicates
from beam.pairing import Pair
from beam.progress import describe
from beam.records import Recipe, difference_hash, identify, settle_duplicates
from beam.tfrecords import PublishedShards
from beam.versions import known_rows
from schemas.classes import load_taxonomy
from schemas.errors import RejectError
from schemas.layout import SPLITS
from schemas.listing import SourceFile
from schemas.manifest import load_manifest
from schemas.sources import SourceRow, rows_of, source_table


def _row(name: str, **values: str) -> SourceRow:
    return SourceRow(name, f"{name}.png", f"{name}.png", 1, 1, 0.0, 0.0, **values)


def test_rows_survive_their_table() -> None:
    rows = [_row(f"{i:05d}", split="train", dhash="0" * 16) for i in range(2_500)]
    table = source_table(reversed(rows))
    assert list(rows_of(table)) == rows
    assert source_table([]).num_rows == 0


@pytest.mark.parametrize("seed", range(3))
def test_near_duplicates_agree_with_comparing_all(seed: int) -> None:
    random = np.random.default_rng(seed)
    # Few seeds and few flipped bits, so that many pairs are close, in one band or in several.
    bases = random.integers(0, 2**64, 6, np.uint64)
    rows = []
    for i in range(700):
        flips = random.choice(64, random.integers(0, 4), replace=False)
        value = int(bases[i % 6]) ^ sum(1 << int(bit) for bit in flips)
        split = SPLITS[int(random.integers(3))]
        shard = None if i % 50 == 0 else "shard"
        rows.append(_row(f"{i:04d}", split=split, shard=shard, dhash=f"{value:016x}"))
    kept = [row for row in rows if row.shard]
    close = [
        (one.id, other.id)
        for one, other in combinations(kept, 2)
        if one.split != other.split
        and (int(one.dhash, 16) ^ int(other.dhash, 16)).bit_count() <= NEAR_DUPLICATE_BITS
    ]
    found = near_duplicates(source_table(rows))
    assert found.pairs_across_splits == len(close) > 1_000
    assert found.images_across_splits == len({name for pair in close for name in pair})


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


def test_a_known_row_is_used_while_the_files_look_the_same(tmp_path: Path) -> None:
    recipe = Recipe(str(tmp_path), SMALL, load_taxonomy("carla-0.8"))
    (tmp_path / "a.png").write_bytes(b"image")
    (tmp_path / "b.png").write_bytes(b"mask")
    files = SourceFile("a.png", 5, 1.0), SourceFile("b.png", 4, 1.0)
    first = identify(Pair("7", *files), recipe, None)
    assert first.image_sha256 != first.mask_sha256
    (tmp_path / "a.png").write_bytes(b"other")
    assert identify(Pair("7", *files), recipe, first) is first
    touched = SourceFile("a.png", 5, 2.0)
    again = identify(Pair("7", touched, files[1]), recipe, first)
    assert again.image_sha256 != first.image_sha256
    missing = identify(Pair("8", SourceFile("c.png", 1, 1.0), files[1]), recipe, None)
    assert (missing.reject_code, missing.image_sha256) == ("unreadable", None)


@pytest.mark.parametrize("on_a_store", [False, True])
def test_a_file_that_changes_meanwhile_is_no_record(
    on_a_store: bool, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("CameraRGB/000_0000.png", "CameraSeg/000_0000.png")
    for name in names:
        (tmp_path / name).parent.mkdir()
        shutil.copy(scenes / name, tmp_path / name)
    files = [
        SourceFile(name, path.stat().st_size, path.stat().st_mtime)
        for name, path in ((name, tmp_path / name) for name in names)
    ]
    recipe = Recipe(str(tmp_path), SMALL, load_taxonomy("carla-0.8"))
    row = identify(Pair("000_0000", *files), recipe, None)
    monkeypatch.setattr(records, "is_remote", lambda _: on_a_store)
    assert records.make_record(row, recipe)[2].source_sha256 == row.image_sha256
    # The same length as before, so that only its bytes and its modification time differ.
    image = (tmp_path / names[0]).read_bytes()
    (tmp_path / names[0]).write_bytes(image[:-20] + b"x" + image[-19:])
    with pytest.raises(RejectError, match="changed while the job ran"):
        records.make_record(row, recipe)


def test_a_table_of_another_kind_is_not_known(dataset: Path, tmp_path: Path) -> None:
    shutil.copy(dataset / "sources.parquet", tmp_path)
    assert len(dict(known_rows(PublishedShards(str(tmp_path), {})))) == 40
    table = pq.read_table(tmp_path / "sources.parquet")
    for other in (table.drop_columns("dhash"), table.set_column(0, "id", table["image_size"])):
        pq.write_table(other, tmp_path / "sources.parquet")
        assert not list(known_rows(PublishedShards(str(tmp_path), {})))


@pytest.mark.parametrize("shape", [(1, 900), (900, 1)])
def test_a_card_shows_sources_of_any_shape(shape: tuple[int, int], tmp_path: Path) -> None:
    for index in range(2):
        for folder, value in (("CameraRGB", 9), ("CameraSeg", 0)):
            (tmp_path / "raw" / folder).mkdir(parents=True, exist_ok=True)
            pixels = np.full((*shape, 3), [index, value, value], np.uint8)
            Image.fromarray(pixels).save(tmp_path / "raw" / folder / f"{index}.png")
    config = SMALL.model_copy(update={"height": 0, "width": 0, "max_doubtful_fraction": 1.0})
    folder = run_ingest(tmp_path / "raw", tmp_path / "out", config)
    with Image.open(folder / "card.png") as card:
        assert card.width == 1000
        assert card.height < 2000
    # The constant images and masks.
    with Image.open(folder / "doubtful.png") as picture:
        assert picture.height < 4 * 2 * 320 + 200


def test_copies_of_bad_pairs_are_bad() -> None:
    same = {"image_sha256": "i", "mask_sha256": "m"}
    bad = _row("a", reject_code="corrupt", reject_message="why", **same)
    copy = _row("b", reject_code="duplicate", reject_message="same as a", **same)
    other = _row("c", reject_code="duplicate", reject_message="same as d", image_sha256="x")
    settled = {row.id: row.reject_code for row in settle_duplicates([bad, copy, other])}
    assert settled == {"a": "corrupt", "b": "corrupt", "c": "duplicate"}


def test_the_data_card(dataset: Path) -> None:
    text = (dataset / "card.md").read_text()
    manifest = load_manifest(dataset)
    assert text.startswith(f"# small {manifest.fingerprint[:12]}\n")
    for line in ("| train | 32 |", "| none | 0 |", "![Class shares"):
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
    assert describe(Counter(), 10, "pairs") == "starting workers"
    counts = Counter(
        {"rejected.truncated": 2, "written": 3_000, "bytes": 3 << 20, "identified": 4_000}
    )
    assert describe(counts, 4_000, "pairs") == (
        "3,002 of 4,000 pairs done (75%), 4,000 identified, 3,000 written, 3.0 MiB, "
        "2 rejected as truncated"
    )
