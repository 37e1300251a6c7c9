"""Task of masks as files."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from runtime.errors import UserError


def test_masks_of_an_earlier_run_do_not_stay(tmp_path: Path, monkeypatch) -> None:
    """Images that are gone, another form, and what a failed attempt has left."""
    from flows.tasks import masks

    partition = "model=m/version=v1/source=s"
    folder = tmp_path / "masks" / partition

    def job(module: str, arguments: list[str], _: object) -> None:
        assert module == "analysis.masks"
        output = Path(next(one for one in arguments if one.startswith("--output="))[9:])
        (output / f"{name}.png").touch()
        if name == "fails":
            raise UserError("no")

    monkeypatch.setattr(masks, "run_job", job)
    monkeypatch.setattr(masks, "get_run_logger", lambda: SimpleNamespace(info=print))
    for name in ("first", "fails", "second"):
        if name == "fails":
            with pytest.raises(UserError):
                masks.write_masks.fn(str(tmp_path), "predictions", partition, "index")
            assert [path.name for path in folder.iterdir()] == ["first.png"]
            continue
        assert masks.write_masks.fn(str(tmp_path), "predictions", partition, "index") == str(folder)
        assert [path.name for path in folder.iterdir()] == [f"{name}.png"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
