"""The ingest job end to end: records as in plain Python, rejects, errors in one line."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from ingesting import records_of, run_ingest, splits_of
from jobs import SMALL, TWO_WORKERS, Job, python
from PIL import Image

from beam.ingest import metadata, split_rules
from beam.ingest import pipeline as ingest
from beam.runners.run import pipeline_options
from flows.flink_demo import published_digests
from images import png
from runtime.errors import UserError
from schemas.classes import load_taxonomy
from schemas.layout import SPLITS
from schemas.manifest import Manifest, load_manifest
from schemas.stats import PixelStats


def reasons_of(folder: Path) -> dict[str, str]:
    rows = pq.read_table(folder / "rejects.parquet").to_pylist()
    root = load_manifest(folder).source
    return {row["source_uri"].removeprefix(f"{root}/"): row["code"] for row in rows}


def test_beam_agrees_with_plain_python(scenes: Path, dataset: Path) -> None:
    taxonomy = load_taxonomy("carla-0.8")
    stats = {split: PixelStats.zero(len(taxonomy)) for split in SPLITS}
    expected: dict[str, list[tuple[int, str]]] = {split: [] for split in SPLITS}
    pixels = {}
    for path in scenes.glob("CameraRGB/*.png"):
        image = np.asarray(Image.open(path).resize((48, 32), Image.Resampling.NEAREST))
        mask = Image.open(scenes / "CameraSeg" / path.name).getchannel("R")
        ids = np.asarray(mask.resize((48, 32), Image.Resampling.NEAREST))
        pixels[path.stem] = image, ids
    splits = splits_of({name: np.unique(ids) for name, (_, ids) in pixels.items()}, SMALL)
    for name, split in splits.items():
        stats[split] += PixelStats.of(*pixels[name], len(taxonomy))
        expected[split].append((split_rules.order_key(name, SMALL), name))

    manifest = load_manifest(dataset)
    assert {split: info.records for split, info in manifest.splits.items()} == {
        "train": 32,
        "validation": 4,
        "test": 4,
    }
    for split in SPLITS:
        records = records_of(dataset, split)
        assert [record.id for record in records] == [key for _, key in sorted(expected[split])]
        for record in records:
            image, ids = pixels[record.id]
            assert np.array_equal(png.decode_image(record.image, 10**6), image)
            assert np.array_equal(png.decode_ids(record.mask), ids)
            assert (record.source_height, record.source_width) == (120, 160)
        counted = list(manifest.splits[split].class_pixels.values())
        assert counted == stats[split].class_pixels.tolist()
    assert manifest.channel_mean == stats["train"].channel_mean()
    assert manifest.channel_std == stats["train"].channel_std()
    assert list(manifest.class_weights.values()) == stats["train"].class_weights()


@pytest.mark.slow
def test_workers_do_not_change_a_byte(scenes: Path, dataset: Path, tmp_path: Path) -> None:
    """Two processes; the dataset's one worker was in the test's process."""
    again = run_ingest(scenes, tmp_path, SMALL, *TWO_WORKERS)
    assert again.name == dataset.name
    assert published_digests(again) == published_digests(dataset)


def test_another_runner_does_not_change_a_byte(scenes, dataset, tmp_path) -> None:
    options = pipeline_options(["--runner=BundleBasedDirectRunner"])
    again = Path(ingest.run(str(scenes), str(tmp_path), SMALL, options))
    assert published_digests(again) == published_digests(dataset)


def test_metadata_that_are_written_again_are_the_same(
    scenes: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = ingest.write_metadata

    def twice(*args):
        write(*args)
        return write(*args)

    monkeypatch.setattr(ingest, "write_metadata", twice)
    assert published_digests(run_ingest(scenes, tmp_path)) == published_digests(dataset)


def test_metadata_appear_when_they_are_whole_and_the_manifest_last(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt that the engine believes to be lost may be writing them too."""
    draw, replace, moved = metadata.write_card, os.replace, []

    def check_folder(target: Path, manifest: Manifest, folder: str) -> None:
        draw(target, manifest, folder)
        assert set(os.listdir(folder)) == {shard.name for shard in manifest.shards}

    def record(source: Path, target: str) -> None:
        moved.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(metadata, "write_card", check_folder)
    monkeypatch.setattr(os, "replace", record)
    published = run_ingest(scenes, tmp_path)
    assert moved[-1] == "manifest.json"
    assert {path.name for path in published.iterdir()} <= set(moved)


@pytest.mark.slow
def test_tfds_and_tensorflow_read_a_dataset(dataset: Path) -> None:
    # Runs in its own process, because TFDS warns about its own dependencies on import.
    script = f"""
import tensorflow as tf, tensorflow_datasets as tfds
from schemas.example import parsing_spec
builder = tfds.builder_from_directory({str(dataset)!r})
assert builder.info.splits["train"].num_examples == 32
one = next(iter(builder.as_dataset(split="test")))
assert one["image"].shape == (32, 48, 3) and one["mask"].shape == (32, 48, 1)
files = tf.io.gfile.glob({str(dataset)!r} + "/small-test.tfrecord-*")
record = next(iter(tf.data.TFRecordDataset(files)))
parsed = tf.io.parse_single_example(record, parsing_spec())
assert (tf.io.decode_png(parsed["image"]).numpy() == one["image"].numpy()).all()
print(sum(1 for _ in builder.as_dataset(split="all")), parsed["id"].numpy().decode())
"""
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["40", records_of(dataset, "test")[0].id]


def test_ingest_imports_no_tensorflow() -> None:
    script = (
        "import sys, beam.ingest.pipeline, beam.runners.worker\n"
        "print(sorted({'tensorflow', 'keras', 'mlflow', 'prefect'} & set(sys.modules)))"
    )
    assert python("-c", script).stdout.strip() == "[]"


def test_rejects_have_their_reasons_and_the_rest_goes_on(copy: Path, tmp_path: Path) -> None:
    rgb, seg = copy / "CameraRGB", copy / "CameraSeg"
    (rgb / "000_0001.png").write_bytes(b"")
    (rgb / "000_0002.png").write_bytes((rgb / "000_0002.png").read_bytes()[:500])
    (seg / "000_0003.png").unlink()
    (rgb / "000_0004.png").unlink()
    Image.new("RGB", (80, 60)).save(seg / "000_0005.png")
    Image.new("L", (160, 120), 77).save(seg / "000_0006.png")
    shutil.copy(rgb / "000_0007.png", rgb / "000_0008.png")
    shutil.copy(seg / "000_0007.png", seg / "000_0008.png")
    (rgb / "000_0009.tga").write_bytes(b"targa")
    (rgb / "._000_0010.png").write_bytes(b"mac")
    config = SMALL.model_copy(update={"max_reject_fraction": 0.5})
    folder = run_ingest(copy, tmp_path / "out", config)
    assert reasons_of(folder) == {
        "CameraRGB/000_0001.png": "empty",
        "CameraRGB/000_0002.png": "truncated",
        "CameraRGB/000_0003.png": "no_mask",
        "CameraSeg/000_0004.png": "no_image",
        "CameraSeg/000_0005.png": "size_mismatch",
        "CameraSeg/000_0006.png": "unknown_class",
        "CameraRGB/000_0008.png": "duplicate",
        "CameraRGB/000_0009.tga": "format",
    }
    manifest = load_manifest(folder)
    assert manifest.records == 40 - 7
    # Two files of each pair, the rejected halves and formats, and what was skipped.
    assert manifest.files_listed == 2 * 40 - 2 + 1 + 1
    assert manifest.skipped == {"hidden": 1}
    rejects = pq.read_table(folder / "rejects.parquet")
    assert all(rejects["message"].to_pylist())
    assert sorted(rejects["image_id"].to_pylist()) == [
        f"000_000{i}" for i in (1, 2, 3, 4, 5, 6, 8, 9)
    ]


def test_copies_of_a_reject_are_rejects_for_its_reason(copy: Path, tmp_path: Path) -> None:
    for name in ("000_0001.png", "000_0002.png"):
        (copy / "CameraRGB" / name).write_bytes(b"")
        shutil.copy(copy / "CameraSeg/000_0000.png", copy / "CameraSeg" / name)
    config = SMALL.model_copy(update={"max_reject_fraction": 0.5})
    assert set(reasons_of(run_ingest(copy, tmp_path / "out", config)).values()) == {"empty"}


def test_one_image_with_two_masks_is_kept_and_told(copy: Path, tmp_path: Path) -> None:
    shutil.copy(copy / "CameraRGB/000_0001.png", copy / "CameraRGB/000_0002.png")
    manifest = load_manifest(run_ingest(copy, tmp_path / "out"))
    assert manifest.records == 40
    assert manifest.doubts["same_picture"] == 2


def test_too_many_rejects_publish_nothing(copy: Path, tmp_path: Path, capsys) -> None:
    for index in range(2):
        (copy / f"CameraRGB/000_{index:04d}.png").write_bytes(b"")
    # A duplicate is no loss: it is not in the share, so not among its reasons either.
    for folder in ("CameraRGB", "CameraSeg"):
        shutil.copy(copy / folder / "000_0005.png", copy / folder / "000_0099.png")
    with pytest.raises(UserError, match=r"5\.0% of the inputs are rejects \(2 empty\)"):
        run_ingest(copy, tmp_path / "out")
    assert "2  empty" in (shown := capsys.readouterr().err)
    assert "1  duplicate" not in shown
    assert "CameraRGB/000_0001.png: expected a PNG, found no bytes" in shown
    assert list((tmp_path / "out/small").iterdir()) == []


def test_names_that_are_no_text_and_links_that_lead_nowhere_are_rejects(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.rename(copy / "CameraRGB/000_0003.png", os.fsencode(copy) + b"/CameraRGB/\xff.png")
    (copy / "CameraRGB/loop.png").symlink_to("loop.png")
    config = SMALL.model_copy(update={"max_reject_fraction": 0.1})
    folder = run_ingest(copy, tmp_path / "out", config)
    assert reasons_of(folder) == {
        "CameraRGB/\\udcff.png": "name",
        "CameraSeg/000_0003.png": "no_image",
        "CameraRGB/loop.png": "missing",
    }
    assert run_ingest(copy, tmp_path / "out", config) == folder
    assert "nothing has changed" in capsys.readouterr().err


def test_masks_of_another_numbering_are_noticed(copy: Path, tmp_path: Path) -> None:
    for path in (copy / "CameraSeg").iterdir():
        mask = np.asarray(Image.open(path)).copy()
        swapped = np.array([7, 1, 2, 3, 4, 5, 6, 0, 8, 9, 10, 11, 12], np.uint8)
        mask[..., 0] = swapped[mask[..., 0]]
        Image.fromarray(mask).save(path)
    manifest = load_manifest(run_ingest(copy, tmp_path / "out"))
    assert any("class 7 Roads should lie in the lower half" in w for w in manifest.warnings)
    assert any("class 0 None should lie in the upper half" in w for w in manifest.warnings)


def test_no_such_warning_where_all_is_well(dataset: Path) -> None:
    warnings = load_manifest(dataset).warnings
    assert not any("should lie" in warning for warning in warnings)
    # The scenes are split one by one, with what leaks.
    groups, beside = warnings
    assert groups.startswith("test has 4 groups of images that belong together, fewer than 10")
    assert "frames are next to one of another split" in beside


def test_native_size(scenes: Path, tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"height": 0, "width": 0})
    folder = run_ingest(scenes, tmp_path, config)
    record = records_of(folder, "test")[0]
    source = np.asarray(Image.open(scenes / f"CameraRGB/{record.id}.png"))
    assert np.array_equal(png.decode_image(record.image, 10**6), source)
    features = json.loads((folder / "features.json").read_text())["featuresDict"]["features"]
    assert features["image"]["image"]["shape"]["dimensions"] == ["-1", "-1", "3"]


def test_mistakes_end_in_one_line_and_code_2(
    job: Job, job_here: Job, scenes: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    source, output = f"--source={scenes}", f"--output={tmp_path}"
    for arguments, complaint in (
        ((f"--source={tmp_path}/none", output), "there is no such folder"),
        ((f"--source={tmp_path}/empty", output), "holds no pairs: found 0 images"),
        ((source, f"--output={tmp_path}/file/x"), "is not writable"),
        ((source, output, "--name=file"), "/file': Not a directory; nothing was published"),
        ((source, output, "--height=-1"), "height: Input should be greater"),
        ((source, output, "--taxonomy=none"), "taxonomy 'none' is neither"),
        ((source, output, "--heigth=96"), "unknown option --heigth"),
        ((source, output, "my", "folder"), "unknown argument 'my'"),
    ):
        # One of them in a process of its own.
        run = job if complaint == "there is no such folder" else job_here
        done = run("beam.ingest", *arguments)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert complaint in done.stderr


@pytest.mark.slow
def test_the_last_line_is_the_folder(job: Job, scenes: Path, tmp_path: Path) -> None:
    arguments = [f"--source={scenes}", f"--output={tmp_path / 'out'}", "--name=small"]
    done = job("beam.ingest", *arguments, "--block_length=1", "--height=32", "--width=48")
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1])
    manifest = load_manifest(folder)
    assert manifest.records + manifest.rejects["leak"] == 40
    assert f"{manifest.records} written" in done.stderr
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_real_pairs(real_dataset: Path) -> None:
    manifest = load_manifest(real_dataset)
    assert manifest.records == 185
    assert manifest.rejects == {"leak": 15}
    (warning,) = manifest.warnings
    assert warning.startswith("test has 2 groups of images that belong together")
    assert all(info.records for info in manifest.splits.values())
    assert sum(manifest.splits["train"].class_pixels.values()) == (
        manifest.splits["train"].records * 192 * 256
    )
