"""Overlays and strips of selected images, as files."""

from pathlib import Path

import numpy as np
from jobs import Job
from PIL import Image

from analysis import overlay
from analysis.overlay import strip
from analysis.pictures import Scene
from analysis.tables import connect
from schemas.classes import load_taxonomy


def test_a_strip_enlarges_small_masks() -> None:
    mask = np.zeros((32, 48), np.uint8)
    scene = Scene("a", np.zeros((32, 48, 3), np.uint8), mask, mask, load_taxonomy("carla-0.8"))
    assert strip(scene).size == (4 * 96 + 3 * 8, 64 + 22)
    alone = Scene("a", None, mask, None, scene.taxonomy)
    assert strip(alone).size == (96, 86)


def test_overlays_of_selected_images(job: Job, job_here: Job, tables: Path, tmp_path: Path) -> None:
    chosen_ids = "SELECT image_id FROM masks WHERE version = 'v1' AND source = 'driveB' LIMIT 2"
    with connect(tables) as database:
        ids = [image_id for (image_id,) in database.sql(chosen_ids).fetchall()]
    chosen = (f"--predictions={tables}", "--version=v1", "--source=driveB", "--ids", *ids)
    for run, name, more, size in (
        (job, "plain", (), (160, 120)),
        (job_here, "strips", ("--strip",), (664, 142)),
    ):
        folder = tmp_path / name
        done = run("analysis.overlay", *chosen, f"--output={folder}", *more)
        assert (done.returncode, done.stdout) == (0, f"{folder}\n"), done.stderr
        files = sorted(path.relative_to(folder) for path in folder.rglob("*.png"))
        assert files == sorted(Path(f"{image_id}.png") for image_id in ids)
        for file in files:
            with Image.open(folder / file) as image:
                assert image.size == size


def test_ids_never_lead_out_of_the_folder(tables: Path, tmp_path: Path, monkeypatch) -> None:
    mask = np.zeros((8, 8), np.uint8)
    scene = Scene("../../x/..", None, mask, None, load_taxonomy("carla-0.8"))
    monkeypatch.setattr(overlay, "load_scenes", lambda *_: [scene])
    arguments = [f"--predictions={tables}", "--version=v1", "--source=lyft", "--ids", "a"]
    overlay.main([*arguments, f"--output={tmp_path / 'in'}"])
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.suffix for path in files] == [".png"]
    assert files[0].is_relative_to(tmp_path / "in")


def test_each_id_has_a_file_of_its_own(tables: Path, tmp_path: Path, monkeypatch) -> None:
    mask = np.zeros((8, 8), np.uint8)
    ids = ["日本/京都", "中国/上海", "a b", "a-b", "a/b", "50%=(1)", "u\u0308", "ü", "x/..", "x/"]
    scenes = [Scene(one, None, mask, None, load_taxonomy("carla-0.8")) for one in ids]
    monkeypatch.setattr(overlay, "load_scenes", lambda *_: scenes)
    arguments = [f"--predictions={tables}", "--version=v1", "--source=lyft", "--ids", *ids]
    overlay.main([*arguments, f"--output={tmp_path}"])
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")}
    assert len(files) == len(ids)
    assert {f"{one}.png" for one in ids[:-2]} <= files
