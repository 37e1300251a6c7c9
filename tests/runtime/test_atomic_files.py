"""A file is replaced whole, or stays as it was."""

from pathlib import Path

import pytest

from runtime.atomic_files import replacing


@pytest.mark.parametrize("sync", [False, True])
def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    with replacing(path, sync=sync) as part:
        part.write_text("new")
        assert path.read_text() == "old"
        assert part.name.startswith(".")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as part:
            part.write_text("ne")
            raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
