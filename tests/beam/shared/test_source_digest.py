"""The images of a source that is to be predicted."""

from pathlib import Path

import pytest
from PIL import Image

from beam.shared.source import source_of
from beam.shared.source_digest import digest_images
from runtime.errors import UserError
from schemas.config import InferConfig


def test_jpegs_that_are_no_images_are_not_passed_over_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = source_of(str(tmp_path), InferConfig())
    (tmp_path / "1.jpg").touch()
    (tmp_path / "2.JPEG").touch()
    with pytest.raises(UserError, match=r"no PNG image, but 2 JPEGs, .*CameraRGB/.* such a folder"):
        digest_images(source)
    Image.new("RGB", (8, 8)).save(tmp_path / "logo.png")
    alone = digest_images(source)
    assert (alone.images, alone.other_pngs, alone.other_jpegs) == (0, 1, 2)
    assert "also holds 2 JPEGs, " in capsys.readouterr().err
    (tmp_path / "CameraRGB").mkdir()
    (tmp_path / "1.jpg").rename(tmp_path / "CameraRGB/1.jpg")
    assert digest_images(source).images == 1
    assert capsys.readouterr().err == ""
