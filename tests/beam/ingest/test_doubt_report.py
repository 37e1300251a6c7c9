"""Pairs that can be read but are probably wrong: counted, shown, and refused if they are many."""

import io
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ingesting import run_ingest
from jobs import SMALL
from PIL import Image

from runtime.errors import UserError
from schemas.manifest import load_manifest

ALLOWED = SMALL.model_copy(update={"height": 96, "width": 128, "max_doubtful_fraction": 1.0})
STRICT = ALLOWED.model_copy(update={"max_doubtful_fraction": 0.25})


def _shift(raw: Path, every: int = 1) -> int:
    """Gives every n-th image the mask of the next one; returns how many."""
    masks = sorted((raw / "CameraSeg").iterdir())
    data = [path.read_bytes() for path in masks]
    for path, other in list(zip(masks, data[1:] + data[:1], strict=True))[::every]:
        path.write_bytes(other)
    return len(masks[::every])


def _doubts(folder: Path) -> dict[str, str]:
    rows = pq.read_table(folder / "sources.parquet", columns=["id", "doubts"]).to_pylist()
    return {row["id"]: row["doubts"] for row in rows if row["doubts"]}


def test_masks_of_the_next_image_publish_nothing(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _shift(copy)
    with pytest.raises(
        UserError, match=r"of the pairs are doubtful \(\d+ edges\), more than --max"
    ):
        run_ingest(copy, tmp_path / "out", STRICT)
    stderr = capsys.readouterr().err
    assert "as in a sequence shifted by one frame" in stderr
    assert "/CameraRGB/000_0000.png\n" in stderr
    assert not list((tmp_path / "out/small").glob("[!.]*"))

    folder = run_ingest(copy, tmp_path / "out", ALLOWED)
    manifest = load_manifest(folder)
    assert manifest.doubtful == manifest.doubts["edges"] == len(_doubts(folder)) > 30
    (warning,) = [one for one in manifest.warnings if "edges of image and mask agree" in one]
    assert "masks of other images" in warning


def test_a_few_doubtful_pairs_are_counted_and_drawn(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Image.open(copy / "CameraRGB/000_0000.png") as image:
        size = image.size
    Image.new("RGB", size, (7, 0, 0)).save(copy / "CameraSeg/000_0003.png")
    Image.new("RGB", size, (90, 90, 90)).save(copy / "CameraRGB/000_0005.png")
    shutil.copy(copy / "CameraSeg/000_0007.png", copy / "CameraRGB/000_0007.png")
    folder = run_ingest(copy, tmp_path / "out", STRICT)
    assert _doubts(folder) == {
        "000_0003": "constant_mask",
        "000_0005": "constant_image,edges",
        "000_0007": "image_is_mask",
    }
    manifest = load_manifest(folder)
    assert manifest.doubtful == 3
    assert manifest.doubts == {
        "constant_image": 1,
        "constant_mask": 1,
        "image_is_mask": 1,
        "edges": 1,
    }
    assert "doubtful: 3 pairs (constant_image 1" in capsys.readouterr().err
    card = (folder / "card.md").read_text()
    assert "| constant_mask | 1 | the mask has one class only |" in card
    assert "![Some pairs with each doubt](doubtful.png)" in card
    # Four rows: the pair with two doubts is drawn for each.
    with Image.open(folder / "doubtful.png") as picture:
        assert picture.height > 4 * 240
    assert manifest.files.keys() >= {"doubtful.png"}


def test_no_picture_where_nothing_is_doubtful(dataset: Path) -> None:
    assert load_manifest(dataset).doubts == {}
    assert not (dataset / "doubtful.png").exists()


def test_equal_pictures_are_found_by_their_pixels_until_one_is_gone(
    copy: Path, tmp_path: Path
) -> None:
    """Another encoding, so that the bytes differ, and the same mask: a record twice."""
    first = copy / "CameraRGB/000_0010.png"
    buffer = io.BytesIO()
    with Image.open(first) as image:
        image.save(buffer, "PNG", compress_level=0)
    assert buffer.getvalue() != first.read_bytes()
    (copy / "CameraRGB/000_0020.png").write_bytes(buffer.getvalue())
    shutil.copy(copy / "CameraSeg/000_0010.png", copy / "CameraSeg/000_0020.png")
    folder = run_ingest(copy, tmp_path / "out", STRICT)
    assert _doubts(folder) == {"000_0010": "same_picture", "000_0020": "same_picture"}
    assert load_manifest(folder).doubts == {"same_picture": 2}

    for camera in ("CameraRGB", "CameraSeg"):
        (copy / camera / "000_0020.png").unlink()
    folder = run_ingest(copy, tmp_path / "out", STRICT)
    assert load_manifest(folder).records == 39
    assert _doubts(folder) == {}


def test_swapped_channels_are_warned_of(copy: Path, tmp_path: Path) -> None:
    for path in (copy / "CameraRGB").iterdir():
        with Image.open(path) as image:
            red, green, blue = image.split()
        Image.merge("RGB", (blue, green, red)).save(path)
    config = SMALL.model_copy(update={"height": 0, "width": 0})
    assert _bgr_warnings(run_ingest(copy, tmp_path / "out", config)) == 1
    back = config.model_copy(update={"image_channels": "bgr"})
    assert _bgr_warnings(run_ingest(copy, tmp_path / "back", back)) == 0


def _bgr_warnings(folder: Path) -> int:
    return sum("--image_channels bgr" in one for one in load_manifest(folder).warnings)


def test_real_pairs_and_the_same_shifted(real: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for camera in ("CameraRGB", "CameraSeg"):
        shutil.copytree(real / "dataA/dataA" / camera, raw / camera)
    names = sorted(path.name for path in (raw / "CameraSeg").iterdir())
    for name in names[30:]:
        (raw / "CameraRGB" / name).unlink()
        (raw / "CameraSeg" / name).unlink()
    right = load_manifest(run_ingest(raw, tmp_path / "right", STRICT))
    assert (right.records, right.doubts) == (30, {})
    _shift(raw)
    with pytest.raises(UserError, match=r"[67]\d\.\d% of the pairs are doubtful|[89]\d\.\d%"):
        run_ingest(raw, tmp_path / "shifted", STRICT)
