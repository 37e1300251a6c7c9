"""A run reuses the published one: only new images are predicted, and the tables are the same."""

import functools
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from inference import counts_of, query, run_infer, tables_of
from jobs import IN_MEMORY, TWO_WORKERS
from PIL import Image

from beam import verify
from beam.infer import handler, incremental, read_pictures, row_files, runs
from beam.infer import pipeline as infer
from beam.infer.__main__ import main as infer_main
from beam.infer.pictures import Unpredicted
from beam.runners.run import pipeline_options
from images import png
from runtime.errors import UnavailableError, UserError
from schemas.config import InferConfig


@pytest.fixture(scope="module")
def twelve(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pairs."""
    raw = tmp_path_factory.mktemp("twelve") / "raw"
    for folder in ("CameraRGB", "CameraSeg"):
        (raw / folder).mkdir(parents=True)
        for path in sorted((scenes / folder).iterdir())[:12]:
            shutil.copy(path, raw / folder)
    return raw


@pytest.fixture
def raw(twelve: Path, tmp_path: Path) -> Path:
    """Twelve pairs that a test may change."""
    return Path(shutil.copytree(twelve, tmp_path / "raw"))


@pytest.fixture(scope="module")
def fresh(trained, twelve: Path, tmp_path_factory: pytest.TempPathFactory):
    """Returns the output of a first run over the twelve pairs; of each configuration, one."""

    @functools.cache
    def run(**config) -> Path:
        place = tmp_path_factory.mktemp("fresh") / "out"
        return run_infer(trained, place, InferConfig(**config), source=twelve)

    return run


@pytest.fixture
def published(fresh, tmp_path: Path) -> Path:
    """A copy of that output, of the default configuration, that a test may change."""
    return Path(shutil.copytree(fresh(), tmp_path / "out"))


def test_only_what_changed_is_predicted(trained, raw: Path, tmp_path: Path, predicted) -> None:
    images, masks = raw / "CameraRGB", raw / "CameraSeg"
    (masks / "000_0003.png").write_bytes(b"")
    (images / "000_0009.png").write_bytes(b"damaged")
    output = run_infer(trained, tmp_path / "out", source=raw)
    assert len(predicted()) == 11

    shutil.copy(images / "000_0000.png", images / "new.png")
    pixels = np.asarray(Image.open(images / "000_0001.png"))
    Image.fromarray(pixels[::-1]).save(images / "000_0001.png")
    Image.fromarray(np.zeros_like(pixels)).save(masks / "000_0002.png")
    (masks / "000_0004.png").unlink()
    (images / "000_0005.png").unlink()
    (images / "000_0006.png").touch()
    run_infer(trained, output, source=raw)
    # 5 is gone; 6 has the same bytes; 3 and 9 are rejected as before.
    assert predicted() == ["000_0001", "000_0002", "000_0004", "new"]
    assert counts_of(output) == (12, 11, 7, 1)
    assert query(output, "FROM rejects SELECT image_id, stage, code ORDER BY 1") == [
        ("000_0003", "truth", "empty"),
        ("000_0005", "truth", "no_image"),
        ("000_0009", "read", "format"),
    ]
    whole = run_infer(trained, tmp_path / "whole", source=raw)
    assert counts_of(whole) == (12, 11, 0, 1)
    assert tables_of(output) == tables_of(whole)


def test_no_step_knows_more_of_the_published_run_than_an_image_or_a_file_of_it(
    trained, twelve: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index of all rows, in the driver or in a worker, would limit the size of a source."""
    read, find, read_pair = incremental.read_published, infer.find_previous, read_pictures.read_pair
    files: list[str] = []
    known: list[int] = []

    def read_published(file, columns):
        files.append(file)
        return read(file, columns)

    def found(*args, **options):
        previous = find(*args, **options)
        assert previous
        assert files == []
        return previous

    def with_previous(pair, source, model, config, previous, crashed):
        known.append(len(previous.images))
        return read_pair(pair, source, model, config, previous, crashed)

    run_infer(trained, published, InferConfig(part_mib=0.001), source=twelve)
    monkeypatch.setattr(incremental, "read_published", read_published)
    monkeypatch.setattr(infer, "find_previous", found)
    monkeypatch.setattr(read_pictures, "read_pair", with_previous)
    masks = {str(path) for path in published.glob("masks/**/*.parquet")}
    assert len(masks) > 3
    run_infer(trained, published, source=twelve)
    assert known == [1] * 12
    assert Counter(file for file in files if file in masks) == Counter(masks)
    assert counts_of(published) == (12, 12, 12, 0)


def test_workers_of_their_own_take_over_the_same_rows(
    trained, twelve: Path, raw: Path, tmp_path: Path
) -> None:
    config = InferConfig(part_mib=0.001)
    late = [
        raw / folder / f"000_000{at}.png" for folder in ("CameraRGB", "CameraSeg") for at in "28"
    ]
    for path in late:
        path.unlink()
    output = run_infer(trained, tmp_path / "out", InferConfig(), source=raw)
    for path in late:
        shutil.copy(twelve / path.relative_to(raw), path)
    arguments = (trained.model, str(raw), None, str(output), config, trained.tracking_uri)
    infer.run(*arguments, options=pipeline_options(TWO_WORKERS))
    assert counts_of(output) == (12, 12, 10, 0)
    assert tables_of(output) == tables_of(run_infer(trained, tmp_path / "one", config, source=raw))


def test_an_image_that_is_listed_as_its_own_mask_is_kept(
    trained, raw: Path, tmp_path: Path
) -> None:
    """Image and mask have one path and one hash, but only the mask is rejected."""
    listed = tmp_path / "pairs.csv"
    listed.write_text(
        "image,mask\nCameraRGB/000_0000.png,CameraRGB/000_0000.png\n"
        "CameraRGB/000_0001.png,CameraSeg/000_0001.png\n"
    )
    config = InferConfig(pairs=str(listed))
    output = run_infer(trained, tmp_path / "out", config, source=raw)
    (raw / "CameraRGB/000_0001.png").touch()
    run_infer(trained, output, config, source=raw)
    assert counts_of(output) == (2, 2, 2, 0)
    assert query(output, "FROM rejects SELECT stage, code") == [("truth", "mask_colours")]


def test_an_image_under_a_new_path_is_predicted_again(trained, raw: Path, tmp_path: Path) -> None:
    """Only the suffix differs, so its id and its bytes are the same."""
    output = run_infer(trained, tmp_path / "out", source=raw)
    old = raw / "CameraRGB/000_0000.png"
    new = old.rename(old.with_suffix(".PNG"))
    run_infer(trained, output, source=raw)
    where = "FROM masks SELECT source_uri WHERE image_id = '000_0000'"
    assert query(output, where) == [(str(new),)]
    assert tables_of(output) == tables_of(run_infer(trained, tmp_path / "whole", source=raw))


def test_rejects_are_tried_again_where_told_or_changed(
    trained, raw: Path, tmp_path: Path, predicted, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged, mask = raw / "CameraRGB/000_0009.png", raw / "CameraSeg/000_0003.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(b"damaged")
    mask.write_bytes(b"")
    output = run_infer(trained, tmp_path / "out", source=raw)
    predicted()

    decoded: list[bytes] = []
    decode = png.decode_image
    monkeypatch.setattr(
        png, "decode_image", lambda data, n: decoded.append(data) or decode(data, n)
    )
    damaged.touch()
    run_infer(trained, output, source=raw)
    assert (decoded, predicted()) == ([], [])
    run_infer(trained, output, source=raw, retry_rejects=True)
    # The image whose mask was rejected is predicted again, as both files are examined.
    assert sorted(map(len, decoded)) == sorted(
        [len(b"damaged"), len((raw / "CameraRGB/000_0003.png").read_bytes())]
    )
    assert predicted() == ["000_0003"]
    assert counts_of(output) == (12, 11, 10, 1)
    damaged.write_bytes(whole)
    run_infer(trained, output, source=raw)
    assert predicted() == ["000_0009"]
    assert counts_of(output) == (12, 12, 11, 0)


def test_the_flags_of_the_command_line(trained, raw: Path, tmp_path: Path, predicted) -> None:
    arguments = [
        *(f"--model={trained.model}", f"--source={raw}", f"--output={tmp_path}/out"),
        *(f"--tracking_uri={trained.tracking_uri}", *IN_MEMORY),
    ]
    (raw / "CameraRGB/000_0009.png").write_bytes(b"damaged")
    reused = []
    for flags in ([], ["--resume"], ["--retry_rejects"], ["--no-resume"]):
        output = infer_main([*arguments, *flags])
        reused.append((counts_of(Path(output))[2], len(predicted())))
    assert reused == [(0, 11), (0, 0), (11, 0), (0, 11)]


def test_a_mask_that_has_moved_is_rejected_again(trained, raw: Path, tmp_path: Path) -> None:
    """The rows of its image are taken over, since neither image nor mask has other bytes."""
    (raw / "CameraSeg/000_0002.png").write_bytes(b"")
    output = run_infer(trained, tmp_path / "out", source=raw)
    (raw / "CameraSeg").rename(raw / "CameraMask")
    run_infer(trained, output, source=raw)
    assert counts_of(output) == (12, 12, 12, 0)
    (row,) = query(output, "FROM rejects SELECT source_uri, stage, code")
    assert row == (f"{raw}/CameraMask/000_0002.png", "truth", "empty")
    assert tables_of(output) == tables_of(run_infer(trained, tmp_path / "fresh", source=raw))


def test_an_unreadable_file_is_tried_again(trained, twelve, tmp_path, monkeypatch) -> None:
    from beam.infer import pictures

    read = pictures.read_bytes

    def refuse(uri: str) -> bytes:
        if uri.endswith("CameraRGB/000_0002.png"):
            raise PermissionError(13, "Permission denied")
        return read(uri)

    monkeypatch.setattr(pictures, "read_bytes", refuse)
    output = run_infer(trained, tmp_path / "out", source=twelve)
    assert query(output, "FROM rejects SELECT code, source_sha256") == [("unreadable", None)]
    monkeypatch.setattr(pictures, "read_bytes", read)
    run_infer(trained, output, source=twelve)
    assert counts_of(output) == (12, 12, 11, 0)


@pytest.mark.parametrize(
    ("config", "options", "reused"),
    [
        ({"part_mib": 0.001}, {}, 12),
        ({"part_mib": 0.001}, {"resume": False}, 0),
        ({}, {"resume": False}, 0),
        ({"height": 48, "width": 64}, {}, 0),
        ({"engine": "tensorflow"}, {}, 0),
        ({"max_pixels": 160 * 120}, {}, 0),
    ],
)
def test_what_is_taken_over(trained, twelve, fresh, published, config, options, reused) -> None:
    run_infer(trained, published, InferConfig(**config), source=twelve, **options)
    assert counts_of(published) == (12, 12, reused, 0)
    assert tables_of(published) == tables_of(fresh(**config))


def test_an_image_that_was_too_large_is_no_longer_one(trained, raw, tmp_path: Path) -> None:
    Image.new("RGB", (200, 150)).save(raw / "CameraRGB/large.png")
    output = run_infer(trained, tmp_path / "out", InferConfig(max_pixels=160 * 120), source=raw)
    assert query(output, "FROM rejects SELECT image_id, code") == [("large", "too_large")]
    run_infer(trained, output, source=raw)
    assert counts_of(output) == (13, 13, 0, 0)


def test_masks_that_make_no_pair_are_no_images(trained, raw: Path, tmp_path: Path) -> None:
    (raw / "CameraSeg/notes.jpg").write_bytes(b"")
    (raw / "CameraMask").mkdir()
    shutil.copy(raw / "CameraSeg/000_0001.png", raw / "CameraMask/000_0001.png")
    output = run_infer(trained, tmp_path / "out", source=raw)
    assert query(output, "FROM rejects SELECT image_id, stage, code ORDER BY ALL") == [
        ("000_0001", "pair", "ambiguous"),
        ("000_0001", "truth", "ambiguous"),
        ("000_0001", "truth", "ambiguous"),
        ("notes", "truth", "format"),
    ]
    assert counts_of(output) == (12, 11, 0, 1)


def test_a_damaged_row_of_runs_is_replaced(trained, twelve: Path, published: Path) -> None:
    (run,) = published.glob("runs/**/*.parquet")
    run.write_bytes(b"damaged")
    run_infer(trained, published, source=twelve)
    assert counts_of(published) == (12, 12, 0, 0)


def test_damage_within_the_row_of_runs_is_found(trained, twelve: Path, published: Path) -> None:
    (run,) = published.glob("runs/**/*.parquet")
    columns = pq.read_metadata(run).row_group(0)
    names = [columns.column(index).path_in_schema for index in range(columns.num_columns)]
    count = columns.column(names.index("images_read"))
    data = bytearray(run.read_bytes())
    data[count.data_page_offset + count.total_compressed_size - 1] ^= 1
    run.write_bytes(data)
    with pytest.raises(UserError, match="1 of 1 files are damaged"):
        verify.main([str(published)])
    run_infer(trained, published, source=twelve)
    assert counts_of(published) == (12, 12, 12, 0)
    assert verify.main([str(published)]) == "5 files are intact"


def test_a_footer_of_unknown_types_counts_as_damaged(published: Path) -> None:
    (run,) = published.glob("runs/**/*.parquet")
    run.write_bytes(_with_unknown_type(run.read_bytes()))
    partition = str(run.parent.relative_to(published / "runs"))
    assert runs.recipe_of(str(published), partition) is None
    with pytest.raises(UserError, match="1 of 1 files are damaged"):
        verify.main([str(published)])


def _with_unknown_type(data: bytes) -> bytes:
    """A Parquet file with another bit in its footer, for which pyarrow has no such type."""
    for at in range(len(data) - 1, 0, -1):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        try:
            pq.read_metadata(pa.BufferReader(bytes(damaged)))
        except pa.ArrowNotImplementedError:
            return bytes(damaged)
        except (OSError, ValueError):
            continue
    raise AssertionError("no bit leads to a type that pyarrow does not have")


def test_files_that_another_job_has_removed_are_named(
    trained, twelve: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a store, which has no locks, a job may publish between another's plan and last step."""
    find = infer.find_previous

    def removed(*args, **options):
        found = find(*args, **options)
        for file in published.glob("masks/**/*.parquet"):
            file.unlink()
        return found

    monkeypatch.setattr(infer, "find_previous", removed)
    with pytest.raises(UnavailableError, match="another job has published this partition meanwh"):
        run_infer(trained, published, InferConfig(part_mib=0.001), source=twelve)


def test_files_have_the_size_that_was_asked_for(trained, scenes: Path, tmp_path: Path) -> None:
    whole = run_infer(trained, tmp_path / "whole", source=scenes)
    (only,) = whole.glob("masks/**/*.parquet")
    target = only.stat().st_size // 4
    output = run_infer(
        trained, tmp_path / "out", InferConfig(part_mib=target / 2**20), source=scenes
    )
    files = list(output.glob("masks/**/*.parquet"))
    assert 3 <= len(files) <= 6
    assert max(path.stat().st_size for path in files) < 2.5 * target
    run_id = pq.read_table(next(output.glob("runs/**/*.parquet")), columns=["run_id"])
    assert all(path.name.startswith(run_id["run_id"][0].as_py()) for path in files)


def test_rows_that_wait_in_several_files_are_one_table(
    trained, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tables_of(run_infer(trained, tmp_path / "one", source=scenes))
    monkeypatch.setattr(row_files, "_FLUSH_IMAGES", 7)
    written: list[str] = []
    open_file = row_files.pa.ipc.new_file

    def spy(path, schema, **options):
        written.append(str(path))
        return open_file(path, schema, **options)

    monkeypatch.setattr(row_files.pa.ipc, "new_file", spy)
    assert tables_of(run_infer(trained, tmp_path / "many", source=scenes)) == expected
    assert len([path for path in written if path.endswith(".masks.arrow")]) >= 40 // 7


def test_a_masks_reject_lasts_as_long_as_its_image(trained, raw, tmp_path, predicted) -> None:
    images = raw / "CameraRGB"
    whole = (images / "000_0001.png").read_bytes()
    Image.new("RGB", (80, 60)).save(images / "000_0001.png")
    (raw / "CameraSeg/000_0002.png").write_bytes(b"")
    output = run_infer(trained, tmp_path / "out", source=raw)
    rejects = "FROM rejects SELECT image_id, stage, code ORDER BY ALL"
    assert query(output, rejects) == [
        ("000_0001", "truth", "size_mismatch"),
        ("000_0002", "truth", "empty"),
    ]
    predicted()
    # The mask was right, its image was not. And beside an unusable image, no mask is judged.
    (images / "000_0001.png").write_bytes(whole)
    (images / "000_0002.png").write_bytes(b"damaged")
    run_infer(trained, output, source=raw)
    assert predicted() == ["000_0001"]
    assert query(output, rejects) == [("000_0002", "read", "format")]
    assert tables_of(output) == tables_of(run_infer(trained, tmp_path / "fresh", source=raw))


def test_what_the_network_failed_on_is_tried_again(
    trained, twelve: Path, fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = handler.predict

    def fail(*given):
        for one in predict(*given):
            lost = one.picture.image_id == "000_0007"
            yield Unpredicted(one.picture, "failed", "a lost device") if lost else one

    monkeypatch.setattr(handler, "predict", fail)
    output = run_infer(trained, tmp_path / "out", source=twelve)
    assert counts_of(output) == (12, 11, 0, 1)
    monkeypatch.setattr(handler, "predict", predict)
    run_infer(trained, output, source=twelve)
    assert counts_of(output) == (12, 12, 11, 0)
    assert tables_of(output) == tables_of(fresh())
