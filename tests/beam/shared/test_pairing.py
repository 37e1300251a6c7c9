"""Files are classified by path and paired by id; listings skip hidden files."""

import pytest

from beam.shared.pairing import Candidate, Pair, Reject, Skip, classify_file, pair_candidates
from runtime.listing import SourceFile, walk, walk_all
from schemas.raw_layout import load_layout

LYFT = load_layout("lyft")


def _file(path: str) -> SourceFile:
    return SourceFile(path, 1, 0.0)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("CameraRGB/7.png", "7"),
        ("dataA/dataA/CameraRGB/000_0021.png", "dataA/dataA/000_0021"),
        ("Train/CameraRGB/town1/7.PNG", "Train/town1/7"),
        ("a/CameraRGB/CameraRGB/7.png", "a/7"),
        ("a/CameraSeg/CameraRGB/7.png", "a/CameraSeg/7"),
        ("camerargb/7.jpg", "7"),
    ],
)
def test_ids(path: str, expected: str) -> None:
    found = classify_file(_file(path), LYFT)
    assert isinstance(found, Candidate)
    assert (found.id, found.is_mask) == (expected, False)


@pytest.mark.parametrize("folder", ["CameraSeg", "CameraMask"])
def test_mask_folders(folder: str) -> None:
    found = classify_file(_file(f"a/{folder}/7.png"), LYFT)
    assert isinstance(found, Candidate)
    assert (found.id, found.is_mask) == ("a/7", True)


def test_what_is_none_of_our_business_is_skipped_for_a_reason() -> None:
    for path, reason in (
        ("readme.txt", "outside the layout"),
        ("7.png", "outside the layout"),
        ("CameraRGB/Thumbs.db", "no image (.db)"),
        ("CameraRGB/LICENSE", "no image (no suffix)"),
    ):
        assert classify_file(_file(path), LYFT) == Skip(path, reason)
    any_png = classify_file(_file("7.png"), LYFT, any_png=True)
    assert any_png == Candidate("7", "7", False, _file("7.png"))


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("CameraRGB/7.avif", "format"),
        ("CameraRGB/7.tga", "format"),
        ("CameraSeg/7.jpg", "format"),
        ("CameraRGB/7.png ", "name"),
    ],
)
def test_images_that_cannot_be_read_are_rejects(path: str, code: str) -> None:
    found = classify_file(_file(path), LYFT)
    assert isinstance(found, Reject)
    assert (found.id, found.code) == ("7", code)


def _pair(*paths: str, need_mask: bool = True) -> list[Pair | Reject]:
    found = [classify_file(_file(path), LYFT) for path in paths]
    return list(
        pair_candidates([one for one in found if isinstance(one, Candidate)], need_mask=need_mask)
    )


def test_pairs_and_what_makes_none() -> None:
    image, mask = "a/CameraRGB/7.png", "a/CameraSeg/7.png"
    assert _pair(mask, image) == [Pair("a/7", _file(image), _file(mask))]
    assert _pair(image, need_mask=False) == [Pair("a/7", _file(image), None)]
    assert [one.code for one in _pair(image)] == ["no_mask"]
    assert [one.code for one in _pair(mask)] == ["no_image"]
    twice = _pair(image, mask, "a/CameraMask/7.png")
    assert [(one.path, one.code) for one in twice] == [
        ("a/CameraMask/7.png", "ambiguous"),
        (image, "ambiguous"),
        (mask, "ambiguous"),
    ]


def test_an_image_and_a_mask_of_different_folders_are_no_pair() -> None:
    paths = ("a/CameraRGB/b/7.png", "a/b/CameraSeg/7.png")
    assert [(one.path, one.code) for one in _pair(*paths)] == [
        (path, "ambiguous") for path in paths
    ]


def test_walk_skips_hidden_files_and_ends_on_link_cycles(tmp_path) -> None:
    for name in ("a/CameraRGB/1.png", "a/CameraRGB/._1.png", ".git/CameraRGB/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12")
    (tmp_path / "2.png").write_bytes(b"1")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    found = sorted((one.path, one.size) for one in walk(str(tmp_path)))
    assert found == [("2.png", 1), ("a/CameraRGB/1.png", 2)]
    (tmp_path / "CameraRGB").mkdir()
    (tmp_path / "CameraRGB/gone.png").symlink_to(tmp_path / "nowhere")
    others = {one.path: one for one in walk_all(tmp_path) if one.skipped or one.error}
    assert {path: one.skipped for path, one in others.items()} == {
        ".git": "hidden",
        "a/CameraRGB/._1.png": "hidden",
        "a/loop": "folder listed under another name",
        "CameraRGB/gone.png": "",
    }
    gone = classify_file(others["CameraRGB/gone.png"], LYFT)
    assert isinstance(gone, Reject)
    assert (gone.id, gone.code) == ("gone", "missing")
    assert "No such file" in gone.message


def test_a_linked_folder_has_its_own_name_wherever_it_is_seen_first(tmp_path) -> None:
    outside = tmp_path / "outside"
    for folder in (tmp_path / "raw/z/drive-7", outside):
        (folder / "CameraRGB").mkdir(parents=True)
        (folder / "CameraRGB/1.png").write_bytes(b"1")
    for name, target in (
        *(("latest", "z/drive-7"), ("a", "z"), ("z/first", "drive-7")),
        *(("y", outside), ("b", outside)),
    ):
        (tmp_path / "raw" / name).symlink_to(target)
    found = sorted(one.path for one in walk(tmp_path / "raw"))
    assert found == ["b/CameraRGB/1.png", "z/drive-7/CameraRGB/1.png"]
