"""Layouts of raw pairs: which paths are images, masks or neither."""

from pathlib import Path

import pytest

from runtime.errors import UserError
from schemas.config import IngestConfig
from schemas.raw_layout import PathMatch, builtin_layouts, layout_of, load_layout


def test_the_layouts_that_come_with_the_project() -> None:
    assert builtin_layouts() == ["camvid", "carla", "cityscapes", "lyft"]
    assert [load_layout(name).name for name in builtin_layouts()] == builtin_layouts()


@pytest.mark.parametrize(
    ("layout", "image", "mask", "sample_id"),
    [
        ("lyft", "a/CameraRGB/b/7.png", "a/CameraSeg/b/7.png", "a/b/7"),
        ("lyft", "CameraRGB/7.JPG", "cameraseg/7.PNG", "7"),
        ("carla", "town1/rgb/7.png", "town1/semantic/7.png", "town1/7"),
        (
            "cityscapes",
            "leftImg8bit/val/bonn/bonn_0_1_leftImg8bit.png",
            "gtFine/val/bonn/bonn_0_1_gtFine_labelIds.png",
            "val/bonn/bonn_0_1",
        ),
        ("camvid", "CamVid/train/0001TP_1.png", "CamVid/trainannot/0001TP_1.png", "CamVid/train/"),
        ("camvid", "701_StillsRaw_full/a.png", "LabeledApproved_full/a_L.png", "a"),
    ],
)
def test_an_image_and_its_mask_have_the_same_key(
    layout: str, image: str, mask: str, sample_id: str
) -> None:
    images, masks = (load_layout(layout).match(path) for path in (image, mask))
    assert images
    assert masks
    assert images.id == masks.id
    assert images.id.startswith(sample_id)
    assert images.key == masks.key
    assert (images.is_mask, masks.is_mask) == (False, True)
    assert images.suffix_fits
    assert masks.suffix_fits


@pytest.mark.parametrize(
    ("layout", "path"),
    [
        ("lyft", "images/7.png"),
        ("cityscapes", "gtFine/val/bonn/bonn_0_1_gtFine_color.png"),
        ("cityscapes", "gtFine/val/bonn/bonn_0_1_gtFine_instanceIds.png"),
        ("camvid", "CamVid/train.txt"),
    ],
)
def test_other_paths_match_nothing(layout: str, path: str) -> None:
    assert load_layout(layout).match(path) is None


def test_two_patterns_are_a_layout_in_which_a_mask_is_no_image() -> None:
    layout = layout_of(IngestConfig(images="**/{id}.png", masks="**/{id}_L.png"))
    assert layout.match("a/7.png") == PathMatch(
        "a/7", "a/\0" + "7", is_mask=False, suffix_fits=True
    )
    assert layout.match("a/7_L.png") == PathMatch(
        "a/7", "a/\0" + "7", is_mask=True, suffix_fits=True
    )
    with pytest.raises(ValueError, match="go together"):
        IngestConfig(images="{id}.png")


def test_a_users_own_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("{name: mine, images: ['x/{id}.jpg'], masks: ['y/{id}.png']}")
    found = load_layout(str(file)).match("x/7.jpg")
    assert found == PathMatch("7", "\0" + "7", is_mask=False, suffix_fits=True)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{name: x, images: ['x.png'], masks: ['{id}.png']}", r"expected \{id\} once"),
        ("{name: x, images: ['/x/{id}.png'], masks: ['{id}.png']}", "below the source"),
        ("{name: x, images: ['x/**/{id}.png'], masks: ['{id}.png']}", "only at its beginning"),
        ("{name: x, images: ['x/{id}'], masks: ['{id}.png']}", "with a suffix"),
        ("{name: x, images: ['{split}/{split}/{id}.png'], masks: ['{id}.png']}", "split} once at"),
        ("{name: x, images: ['{id}.png'], masks: []}", "masks"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=complaint) as caught:
        load_layout(str(file))
    assert "\n" not in str(caught.value)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="neither one of camvid, carla, cityscapes, lyft nor"):
        load_layout("none")
