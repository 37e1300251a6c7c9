"""HTML report of a run: figures, lineage, pictures."""

import base64
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow.parquet as pq
import pytest
from inference import pixels_of, published_run, run_infer
from jobs import Job, Trained
from PIL import Image

from analysis import masks, overlay, report
from analysis.pictures import Scene, load_scenes
from analysis.tables import connect
from images.panels import VOID_COLOUR, WRONG_COLOUR, colourise
from runtime.errors import UserError
from schemas.classes import VOID, load_taxonomy
from schemas.config import InferConfig, TrainConfig

LYFT_FOLDERS = ("CameraRGB", "CameraSeg")
PARTITION = "model=lyft-unet/version=v1/source=lyft"
MEBIBYTE = 1 << 20


class _Page(HTMLParser):
    """The content of a page: the rows of its tables, its pictures and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.images: list[dict] = []
        self.addresses: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        attributes = dict(attrs)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "img":
            self.images.append(attributes)
        addresses = self.links if tag == "a" else self.addresses
        addresses += [attributes[name] for name in ("href", "src") if name in attributes]

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


@pytest.fixture(scope="module")
def page(database) -> str:
    return report.report(database, published_run(database))


def test_figures_of_the_classes(database, page: str) -> None:
    expected = database.sql(
        "SELECT class_name, sum(pixel_count) / sum(sum(pixel_count)) OVER () AS share,"
        " sum(intersection) FILTER (split = 'test') / sum(\"union\") FILTER (split = 'test')"
        " FROM class_stats WHERE version = 'v1' AND source = 'lyft'"
        " GROUP BY class_id, class_name ORDER BY share DESC, class_id"
    ).fetchall()
    rows = [row for row in _Page(page).rows if row[0] in {name for name, *_ in expected}]
    assert [row[0] for row in rows] == [name for name, *_ in expected]
    for row, (_, share, iou) in zip(rows, expected, strict=True):
        shown = "0" if share == 0 else f"{share:.1%}" if share >= 0.001 else "< 0.1%"
        assert row[1] == shown
        assert row[7] == (report.MISSING if iou is None or np.isnan(iou) else f"{iou:.3f}")


def test_report_shows_lineage(database, page: str) -> None:
    run = published_run(database)
    text = _Page(page).text
    for key in ("run_id", "model_uri", "model_sha256", "mlflow_run_id", "source_uri"):
        assert run[key] in text
    assert run["dataset_fingerprint"] in text
    assert "on the test split, 4 groups of images that belong together: fewer than 10 say" in text
    # Other models have versions and sources of the same names.
    assert "model = 'lyft-unet' AND version = 'v1' AND source = 'lyft'" in _Page(page).text


def test_report_links_to_files_and_servers(
    database, job_here: Job, tables: Path, page: str, tmp_path: Path
) -> None:
    files = [Path(unquote(link.removeprefix("file://"))) for link in _Page(page).links]
    assert len(files) == 1 + 12
    assert (files[-1] / "manifest.json").is_file()
    assert {file.suffix for file in files[:-1] if file.is_file()} == {".png"}

    path, servers = tmp_path / "report.html", ("http://mlflow:5000", "https://prefect:4200")
    run = published_run(database)
    given = (f"--predictions={tables}", f"--partition={PARTITION}", f"--output={path}")
    assert job_here("analysis.report", *given, *_options(*servers)).returncode == 0
    links = _Page(path.read_text(encoding="utf-8")).links
    assert f"{servers[0]}/#/runs/{run['mlflow_run_id']}" in links
    assert f"{servers[0]}/#/models/lyft-unet/versions/1" in links
    # No flow has made these tables.
    assert len(links) == len(files) + 2
    run["flow_run_id"] = "7f"
    found = _Page(report.report(database, run, prefect=servers[1])).links
    assert f"{servers[1]}/runs/flow-run/7f" in found

    refused = job_here("analysis.report", *given, *_options("javascript:x", servers[1]))
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: --mlflow=javascript:x: expected http://HOST:PORT\n",
    )


def _options(mlflow: str, prefect: str) -> tuple[str, str]:
    return f"--mlflow={mlflow}", f"--prefect={prefect}"


def test_the_gallery_shows_worst_best_and_random_images(database, page: str) -> None:
    ids = [
        image_id
        for (image_id,) in database.sql(
            "SELECT image_id FROM image_quality WHERE version = 'v1' AND source = 'lyft'"
            " ORDER BY mean_iou, image_id"
        ).fetchall()
    ]
    shown = list(dict.fromkeys(image["alt"].split(" of ")[1] for image in _Page(page).images))
    assert len(shown) == 12
    assert shown[:4] == ids[:4]
    assert sorted(shown[4:8]) == sorted(ids[-4:])
    names = [image["alt"].split(" of ")[0] for image in _Page(page).images[:4]]
    assert names == ["Input", "Truth", "Prediction", "Errors"]
    for image in _Page(page).images:
        picture = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
        assert picture.size == (int(image["width"]), int(image["height"])) == (48, 32)


def test_truth_has_the_colours_of_the_classes(page: str) -> None:
    colours = {label.colour for label in load_taxonomy("carla-0.8").classes}
    pictures = [one for one in _Page(page).images if one["alt"].startswith("Truth of ")]
    assert pictures
    for picture in pictures:
        data = base64.b64decode(picture["src"].partition(",")[2])
        with Image.open(io.BytesIO(data)) as image:
            assert {colour for _, colour in image.convert("RGB").getcolors(1 << 16)} <= colours


def test_report_is_self_contained(page: str) -> None:
    assert all(address.startswith("data:") for address in _Page(page).addresses)
    assert "<script" not in page
    assert not re.search(r"url\(|@import|https?:", page)
    assert len(page.encode()) < MEBIBYTE


def test_report_is_deterministic(
    job: Job, tables: Path, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "reports/report.html"
    monkeypatch.setenv("TZ", "America/New_York")
    done = job(
        "analysis.report", f"--predictions={tables}", f"--partition={PARTITION}", f"--output={path}"
    )
    assert (done.returncode, done.stdout) == (0, f"{path}\n"), done.stderr
    assert path.read_text(encoding="utf-8") == page
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def _predicted(
    tables: Path, folder: Path, config: InferConfig | None = None, **place: Path
) -> Path:
    """Tables of the shared model over a source or a dataset, below ``folder``."""
    store = f"sqlite:///{tables.parents[1]}/mlflow/mlflow.db"
    model = Trained("models:/lyft-unet/1", store, TrainConfig())
    return run_infer(model, folder / "out", config, **place)


def test_a_run_of_few_images(tables: Path, dataset: Path, tmp_path: Path) -> None:
    """Of which one section shows all, so that the others have none left."""
    output = _predicted(tables, tmp_path, InferConfig(split="test"), dataset=dataset)
    path = tmp_path / "report.html"
    report.main([f"--predictions={output}", f"--output={path}"])
    text = path.read_text(encoding="utf-8")
    assert "Lowest IoU" in text
    assert "Highest IoU" not in text


def test_pictures_are_turned_as_the_job_turned_them(tables: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20] = 200
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(raw / "turned.png", exif=exif)
    output = _predicted(tables, tmp_path, source=raw)
    with connect(output) as database:
        (scene,) = load_scenes(database, published_run(database, source="raw"), ["turned"])
    assert scene.mask.shape == (60, 40)
    assert scene.image is not None
    assert np.array_equal(scene.image, np.rot90(pixels, -1))


def test_a_run_without_truth_and_with_rejects(tables, scenes, tmp_path: Path) -> None:
    raw = Path(shutil.copytree(scenes / "CameraRGB", tmp_path / "raw"))
    (raw / "<b>.png").write_bytes(b"")
    (raw / "a & b.png").write_bytes((raw / "000_0001.png").read_bytes())
    output = _predicted(tables, tmp_path, source=raw)
    with connect(output) as database:
        (run,) = database.sql("FROM runs").fetchall()
        columns = database.sql("FROM runs").columns
        found = _Page(text := report.report(database, dict(zip(columns, run, strict=True))))
    assert "No truth is known" in found.text
    assert "1 rejected" in found.text
    assert "Highest confidence" in found.text
    assert "Confusion" not in found.text
    assert ["read", "empty", "1"] in [row[:3] for row in found.rows]
    assert {image["alt"].split(" of ")[0] for image in found.images} == {"Input", "Prediction"}
    assert "<b>.png" not in text


def test_masks_are_shown_without_deleted_images(database, tables: Path, tmp_path: Path) -> None:
    run = published_run(database, source="driveA")
    (image_id,) = database.sql(
        "SELECT min(image_id) FROM masks WHERE version = 'v1' AND source = 'driveA'"
    ).fetchall()[0]
    (scene,) = load_scenes(database, run, [image_id])
    assert scene.image is not None
    assert scene.truth is not None
    moved = Path(shutil.copytree(tables, tmp_path / "moved"))
    (path,) = moved.glob("masks/*/version=v1/source=driveA/*.parquet")
    table = pq.ParquetFile(path).read()
    gone = table.set_column(
        table.column_names.index("source_uri"),
        table.field("source_uri"),
        [[f"/none/{name}.png" for name in table["image_id"].to_pylist()]],
    )
    pq.write_table(gone, path)
    with connect(moved) as other:
        (scene,) = load_scenes(other, run, [image_id])
        assert scene.image is scene.truth is scene.errors() is None
        colours = np.array([c.colour for c in load_taxonomy("carla-0.8").classes], np.uint8)
        assert np.array_equal(scene.prediction(), colours[scene.mask])
        assert "Prediction of" in report.report(other, run)


@pytest.mark.parametrize("kind", ["jpeg", "small letters", "colours"])
def test_truth_beside_an_image_is_found(
    tables: Path, scenes: Path, tmp_path: Path, kind: str
) -> None:
    camera, seg = ("cameraRGB", "cameraSeg") if kind == "small letters" else LYFT_FOLDERS
    for folder in (camera, seg):
        (tmp_path / "raw" / folder).mkdir(parents=True)
    image = Image.open(scenes / "CameraRGB/000_0001.png")
    image.save(tmp_path / f"raw/{camera}/a.{'jpg' if kind == 'jpeg' else 'png'}")
    truth = np.ascontiguousarray(pixels_of(scenes / "CameraSeg/000_0001.png")[..., 0])
    coloured = colourise(truth, load_taxonomy("carla-0.8"))
    Image.fromarray(coloured if kind == "colours" else truth).save(tmp_path / f"raw/{seg}/a.png")
    output = _predicted(tables, tmp_path, source=tmp_path / "raw")
    with connect(output) as database:
        (scene,) = load_scenes(database, run := published_run(database, source="raw"), ["a"])
        page = report.report(database, run)
    assert np.array_equal(scene.truth, truth)
    assert "Truth is left out" not in page
    (tmp_path / "raw" / seg / "a.png").unlink()
    with connect(output) as database:
        assert "Truth is left out" in report.report(database, run)


def test_an_image_that_has_changed_is_not_shown(tables: Path, scenes: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    shutil.copy(scenes / "CameraRGB/000_0001.png", raw / "a.png")
    output = _predicted(tables, tmp_path, source=raw)
    shutil.copy(scenes / "CameraRGB/000_0002.png", raw / "a.png")
    with connect(output) as database:
        (scene,) = load_scenes(database, published_run(database, source="raw"), ["a"])
    assert scene.image is None


def test_images_of_any_shape_have_pictures(tables: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for name, size in (("wide", (1000, 1)), ("high", (1, 17_000))):
        Image.new("RGB", size).save(raw / f"{name}.png")
    output = _predicted(tables, tmp_path, source=raw)
    report.main([f"--predictions={output}", f"--output={tmp_path}/report.html"])
    page = _Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    sizes = {(image["alt"], image["width"], image["height"]) for image in page.images}
    assert {("Input of wide", "400", "1"), ("Input of high", "1", "4000")} <= sizes


def test_tables_that_change_meanwhile_are_a_mistake(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = Path(shutil.copytree(tables, tmp_path / "moved"))
    arguments = [f"--predictions={moved}", "--version=v1", "--source=driveA"]
    for command, more in ((report, ()), (masks, ()), (overlay, ("--ids", "000_0001"))):

        def select(connection, args, select_run=command.select_run):
            run = select_run(connection, args)
            shutil.rmtree(moved / "masks", ignore_errors=True)
            return run

        monkeypatch.setattr(command, "select_run", select)
        with pytest.raises(UserError, match=r"run this again if a job has just replaced them"):
            command.main([*arguments, *more, f"--output={tmp_path}/out"])
        shutil.copytree(tables / "masks", moved / "masks")


def test_a_run_without_its_classes_is_a_mistake(tables: Path, tmp_path: Path) -> None:
    for table in ("masks", "class_stats", "confusion", "runs", "rejects"):
        shutil.copytree(tables / table, tmp_path / "some" / table)
    (other,) = tables.glob("classes/*/version=v1/source=driveB")
    shutil.copytree(other, tmp_path / "some" / other.relative_to(tables))
    arguments = [f"--predictions={tmp_path}/some", "--version=v1", "--source=driveA"]
    with pytest.raises(UserError, match="no rows in the table classes"):
        report.main([*arguments, f"--output={tmp_path}/report.html"])


def test_void_is_neither_right_nor_wrong() -> None:
    truth = np.array([[0, VOID], [1, 1]], np.uint8)
    mask = np.array([[0, 0], [1, 2]], np.uint8)
    scene = Scene("a", None, mask, truth, load_taxonomy("carla-0.8"))
    errors = scene.errors()
    assert tuple(errors[0, 1]) == VOID_COLOUR
    assert tuple(errors[1, 1]) == WRONG_COLOUR
    assert (errors[[0, 1], [0, 0]] == 248).all()


def test_mistakes_end_in_one_line_and_code_2(
    job: Job, job_here: Job, tables: Path, dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    data = f"--predictions={tables}"
    one = (data, "--version=v1", "--source=lyft")
    page = f"--output={tmp_path}/report.html"
    mistakes = (
        ("report", (data, page), "4 runs are chosen, expected one; choose by"),
        ("overlay", (*one, "--ids", "none", f"--output={tmp_path}"), "has no image 'none'"),
        ("report", (data, page, "--version=v9"), "0 runs are chosen"),
        ("report", (data, page, "--partition=v1"), "expected model=…/version=…/source=…"),
        ("report", (*one, f"--output={tmp_path}/file/report.html"), "is not writable"),
        ("report", (*one, page, f"--dataset={tmp_path}"), "has no manifest.json"),
        (
            "report",
            (data, "--source=driveA", page, f"--dataset={dataset}"),
            "no dataset; leave --dat",
        ),
        ("overlay", (*one, "--ids", "000_0001", f"--output={tmp_path}/file"), "is not writable"),
    )
    # One of each command in a process of its own.
    for run, (module, arguments, complaint) in zip(
        (job, job, *[job_here] * 6), mistakes, strict=True
    ):
        done = run(f"analysis.{module}", *arguments)
        assert done.returncode == 2, done.stderr
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1, done.stderr
        assert complaint in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
