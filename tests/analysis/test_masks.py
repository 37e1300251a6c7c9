"""Export of masks as PNGs and as COCO annotations."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from inference import query
from jobs import Job
from PIL import Image

from analysis.masks import main
from images.panels import colourise
from schemas.classes import load_taxonomy

TAXONOMY = load_taxonomy("carla-0.8")
CHOSEN = ("--version=v1", "--source=driveA")


@pytest.fixture(scope="module")
def masks(tables: Path) -> dict[str, tuple[bytes, np.ndarray]]:
    """Stored file and class ids of each image of a run."""
    rows = query(
        tables,
        "SELECT image_id, mask.bytes FROM masks WHERE version = 'v1' AND source = 'driveA'",
    )
    return {name: (data, np.asarray(Image.open(io.BytesIO(data)))) for name, data in rows}


@pytest.mark.parametrize("form", ["palette", "index", "colour"])
def test_pngs_have_image_names_and_table_pixels(
    form: str, tables: Path, masks, tmp_path: Path, job_here: Job
) -> None:
    done = job_here(
        "analysis.masks",
        *(f"--predictions={tables}", *CHOSEN, f"--output={tmp_path}/out", f"--form={form}"),
    )
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/out\n"), done.stderr
    files = sorted((tmp_path / "out").rglob("*.*"))
    assert [path.stem for path in files] == sorted(masks)
    assert len(files) == 20
    for path in files:
        data, ids = masks[path.stem]
        with Image.open(path) as found:
            found.load()
        if form == "palette":
            assert path.read_bytes() == data
        elif form == "index":
            assert found.mode == "L"
            assert np.array_equal(np.asarray(found), ids)
        else:
            assert found.mode == "RGB"
            assert np.array_equal(np.asarray(found), colourise(ids, TAXONOMY))


def test_files_of_an_earlier_run_are_noticed(
    tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = [f"--predictions={tables}", *CHOSEN, f"--output={tmp_path}"]
    main(export)
    assert "warning" not in capsys.readouterr().err
    (tmp_path / "old").mkdir()
    (tmp_path / "old/000_0001.png").touch()
    main(export)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "20 masks written",
        f"warning: 1 other PNGs in '{tmp_path}' are no masks of this run",
    ]


def test_coco_annotations_cover_each_pixel_once(
    tables: Path, masks, tmp_path: Path, job_here: Job
) -> None:
    ids = sorted(masks)[:3]
    done = job_here(
        "analysis.masks",
        *(f"--predictions={tables}", *CHOSEN, f"--output={tmp_path}", "--form=coco"),
        *("--ids", *ids),
    )
    assert done.returncode == 0, done.stderr
    coco = json.loads((tmp_path / "annotations.json").read_text())
    assert [one["file_name"] for one in coco["images"]] == [f"{name}.png" for name in ids]
    assert [one["name"] for one in coco["categories"]] == list(TAXONOMY.names)
    for image, name in zip(coco["images"], ids, strict=True):
        expected = masks[name][1]
        found = np.full(expected.shape, 255, np.uint8)
        for one in coco["annotations"]:
            if one["image_id"] != image["id"]:
                continue
            counts, size = one["segmentation"]["counts"], one["segmentation"]["size"]
            values = np.arange(len(counts)) % 2 == 1
            inside = np.repeat(values, counts).reshape(size, order="F")
            assert not (found[inside] != 255).any()
            found[inside] = one["category_id"] - 1
            assert one["area"] == inside.sum()
            left, top, width, height = one["bbox"]
            assert inside[top : top + height, left : left + width].sum() == inside.sum()
            assert inside[top].any()
            assert inside[:, left + width - 1].any()
        assert np.array_equal(found, expected)
    assert len({one["id"] for one in coco["annotations"]}) == len(coco["annotations"])


def test_user_errors_are_one_line(tables: Path, tmp_path: Path, job_here: Job) -> None:
    (tmp_path / "file").touch()
    for arguments, message in (
        ((*CHOSEN, f"--output={tmp_path}", "--ids", "none"), "has no image 'none'"),
        ((*CHOSEN, f"--output={tmp_path}/file"), "is not writable"),
        (("--version=v9", f"--output={tmp_path}"), "0 runs are chosen"),
    ):
        done = job_here("analysis.masks", f"--predictions={tables}", *arguments)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
