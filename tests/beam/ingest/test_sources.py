"""Archives and lists of pairs as sources of both jobs: the same records as from a folder."""

import re
import shutil
import zipfile
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from inference import query, run_infer
from ingesting import run_ingest
from jobs import ROOT, SMALL, TWO_WORKERS, Trained

from runtime.errors import UserError
from schemas.config import InferConfig, TrainConfig
from schemas.manifest import load_manifest


@pytest.fixture(params=["zip", "tar"])
def packed(request, scenes: Path, tmp_path: Path) -> Path:
    # As Kaggle packs its sets: in a folder of its own.
    (tmp_path / "in").mkdir()
    shutil.copytree(scenes, tmp_path / "in/dataA")
    name = shutil.make_archive(str(tmp_path / "lyft"), request.param, tmp_path / "in")
    shutil.rmtree(tmp_path / "in")
    return Path(name)


def _shards(folder: Path) -> list[tuple[str, str]]:
    return sorted((path.name, path.read_bytes()) for path in folder.glob("*.tfrecord*"))


def test_an_archive_gives_the_shards_of_its_folder(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.unpack_archive(packed, tmp_path / "raw")
    expected = run_ingest(tmp_path / "raw", tmp_path / "folder")
    for options in ((), TWO_WORKERS):
        output = tmp_path / f"out{len(options)}"
        found = run_ingest(packed, output, SMALL, *options)
        assert _shards(found) == _shards(expected)
        assert load_manifest(found).files_listed == 80
        capsys.readouterr()
        assert run_ingest(packed, output, SMALL) == found
        assert "nothing has changed" in capsys.readouterr().err


def test_images_of_an_archive_are_predicted(
    packed: Path, tmp_path: Path, plain_model: Path
) -> None:
    model = Trained(str(plain_model), "", TrainConfig())
    run_infer(model, tmp_path / "out", InferConfig(height=32, width=48), source=packed)
    ((images, truth, first),) = query(
        tmp_path / "out", "FROM masks SELECT count(*), count(pixel_accuracy), min(source_uri)"
    )
    assert (images, truth) == (40, 40)
    assert first == f"{packed}/dataA/CameraRGB/000_0000.png"


def test_a_folder_of_archives_says_what_to_pass(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    shutil.move(packed, tmp_path / "raw")
    with pytest.raises(UserError, match=f"it holds {packed.name}: pass --archives=open for .zip"):
        run_ingest(tmp_path / "raw", tmp_path / "out")
    Path(tmp_path / "raw" / packed.name).rename(tmp_path / "raw/lyft.rar")
    with pytest.raises(UserError, match=r"it holds lyft.rar: of archives, only .zip and .tar are"):
        run_ingest(tmp_path / "raw", tmp_path / "out", OPENED)


OPENED = SMALL.model_copy(update={"archives": "open"})


@pytest.fixture
def archives(scenes: Path, tmp_path: Path) -> Path:
    """A folder with the scenes in two archives and a folder; a hidden archive has them once more.

    Beside it, in ``unpacked``, each archive is a folder of the same name.
    """
    folder, unpacked = tmp_path / "archives", tmp_path / "unpacked"
    parts = {"north/drive 1.zip": (0, 15), "drive2.TAR": (15, 30), "drive3": (30, 40)}
    for name, (first, last) in parts.items():
        for number in range(first, last):
            for camera in ("CameraRGB", "CameraSeg"):
                (target := unpacked / name / "a" / camera).mkdir(parents=True, exist_ok=True)
                shutil.copy(scenes / camera / f"000_{number:04d}.png", target)
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if kind := place.suffix[1:].lower():
            shutil.move(
                shutil.make_archive(str(tmp_path / "made"), kind, unpacked / name), folder / name
            )
        else:
            shutil.copytree(unpacked / name, place)
    shutil.copy(folder / "north/drive 1.zip", folder / ".old.zip")
    return folder


def test_archives_below_a_folder_are_opened(archives: Path, tmp_path: Path, plain_model) -> None:
    expected = run_ingest(tmp_path / "unpacked", tmp_path / "folder")
    for options in ((), TWO_WORKERS):
        found = run_ingest(archives, tmp_path / f"out{len(options)}", OPENED, *options)
        assert _shards(found) == _shards(expected)
        # 40 pairs and the hidden archive.
        assert load_manifest(found).files_listed == 2 * 40 + 1
    # Without the option, archives are skipped like other files that are no images.
    assert load_manifest(run_ingest(archives, tmp_path / "skipped")).records == 10

    model = Trained(str(plain_model), "", TrainConfig())
    config = InferConfig(height=32, width=48, archives="open")
    run_infer(model, tmp_path / "tables", config, source=archives)
    rows = "FROM masks SELECT count(*), count(pixel_accuracy), min(source_uri)"
    first = f"{archives}/drive2.TAR/a/CameraRGB/000_0015.png"
    assert query(tmp_path / "tables", rows) == [(40, 40, first)]


def test_a_list_and_an_inventory_of_archives(archives: Path, tmp_path: Path) -> None:
    listed, inventory = tmp_path / "pairs.csv", tmp_path / "files.csv"
    names = [f"north/drive 1.zip/a/Camera{{}}/000_{number:04d}.png" for number in range(12)]
    pairs = [f"{name.format('RGB')},{name.format('Seg')}" for name in names]
    listed.write_text("\n".join(["image,mask", *pairs]) + "\n")
    config = OPENED.model_copy(update={"pairs": str(listed)})
    assert load_manifest(run_ingest(archives, tmp_path / "list", config)).records == 12

    tar = archives / "drive2.TAR"
    inventory.write_text(f"path,size\n{tar.name},{tar.stat().st_size}\n")
    config = OPENED.model_copy(update={"inventory": str(inventory)})
    assert load_manifest(run_ingest(archives, tmp_path / "inventory", config)).records == 15
    tar.unlink()
    with pytest.raises(UserError, match=r"archive '.*drive2.TAR' cannot be read: No such file"):
        run_ingest(archives, tmp_path / "gone", config)


def test_a_damaged_archive_ends_the_job(archives: Path, tmp_path: Path) -> None:
    """As one reject it would cost all its pairs without a word."""
    path = archives / "north/drive 1.zip"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"archive '.*drive 1.zip' cannot be read: "):
        run_ingest(archives, tmp_path / "out", OPENED)
    assert not list((tmp_path / "out/small").glob("[!.]*"))


def test_archives_in_an_archive_are_not_opened(archives: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as file:
        for path in archives.rglob("*"):
            file.write(path, path.relative_to(archives))
    assert load_manifest(run_ingest(tmp_path / "all.zip", tmp_path / "out", OPENED)).records == 10


def test_parquet_files_of_images_become_a_zip_as_the_document_shows(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(path.name for path in (scenes / "CameraRGB").iterdir())
    (tmp_path / "parquet").mkdir()
    for first in (0, 20):
        rows = [
            {
                column: {"bytes": (scenes / camera / name).read_bytes(), "path": name}
                for column, camera in (("image", "CameraRGB"), ("label", "CameraSeg"))
            }
            for name in names[first : first + 20]
        ]
        file = tmp_path / f"parquet/train-{first:02d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=8)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/ingest.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    found = run_ingest(tmp_path / "raw.zip", tmp_path / "out")
    assert load_manifest(found).records == 40
    hashes = "SELECT image_sha256, mask_sha256 FROM '{}/sources.parquet' ORDER BY ALL"
    expected = run_ingest(scenes, tmp_path / "expected")
    assert (
        duckdb.sql(hashes.format(found)).fetchall()
        == duckdb.sql(hashes.format(expected)).fetchall()
    )


def _list(scenes: Path, path: Path) -> None:
    """The scenes: splits and groups for some, the last without a mask, one that does not exist."""
    rows = ["image,mask,split,group"]
    for number, image in enumerate(sorted((scenes / "CameraRGB").iterdir())):
        split = ("test", "train", "")[min(number // 5, 2)]
        group = f"street {number // 10}" if number >= 20 else ""
        rows.append(f"CameraRGB/{image.name},CameraSeg/{image.name},{split},{group}")
    rows[-1] = rows[-1].replace("CameraSeg/000_0039.png", "")
    rows.append("CameraRGB/none.png,CameraSeg/none.png,,")
    path.write_text("\n".join(rows) + "\n")


def test_a_list_names_the_pairs_and_their_splits(scenes: Path, tmp_path: Path) -> None:
    listed = tmp_path / "pairs.csv"
    _list(scenes, listed)
    config = SMALL.model_copy(update={"pairs": str(listed), "max_reject_fraction": 0.1})
    folder = run_ingest(scenes, tmp_path / "out", config)
    manifest = load_manifest(folder)
    # Two files of 39 pairs, an image without a mask, and the two that do not exist.
    assert manifest.files_listed == 2 * 39 + 1 + 2
    assert manifest.rejects == {"missing": 2, "no_mask": 1}
    assert manifest.records == 39
    splits = dict(duckdb.sql(f"FROM '{folder}/sources.parquet' SELECT id, split").fetchall())
    names = sorted(splits)
    assert {splits[name] for name in names[:5]} == {"test"}
    assert {splits[name] for name in names[5:10]} == {"train"}
    for group in (names[20:30], names[30:39]):
        assert len({splits[name] for name in group}) == 1
    # A list in Parquet is the same one; one with another split is another dataset.
    again = SMALL.model_copy(
        update={"pairs": str(tmp_path / "pairs.parquet"), "max_reject_fraction": 0.1}
    )
    table = duckdb.sql(f"FROM read_csv('{listed}', all_varchar = true)").arrow().read_all()
    pq.write_table(table, again.pairs)
    other = run_ingest(scenes, tmp_path / "again", again)
    assert pq.read_table(other / "sources.parquet").equals(
        pq.read_table(folder / "sources.parquet")
    )
    listed.write_text(listed.read_text().replace(",test,", ",val,"))
    moved = run_ingest(scenes, tmp_path / "out", config)
    assert moved != folder
    assert load_manifest(moved).splits["validation"].records >= 5


def test_a_list_that_pairs_the_same_files_otherwise_is_another_dataset(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # The path is relative to the folder in which the job was started, for its workers as well.
    config = SMALL.model_copy(update={"pairs": "pairs.csv", "max_doubtful_fraction": 1.0})
    masks = list(range(12))
    published = []
    for _ in range(2):
        rows = [f"CameraRGB/000_{n:04d}.png,CameraSeg/000_{m:04d}.png" for n, m in enumerate(masks)]
        Path("pairs.csv").write_text("\n".join(["image,mask", *rows]) + "\n")
        published.append(run_ingest(scenes, tmp_path / "out", config, *TWO_WORKERS))
        masks[:2] = masks[1], masks[0]
    first, second = (
        dict(duckdb.sql(f"FROM '{one}/sources.parquet' SELECT id, mask_path").fetchall())
        for one in published
    )
    names = [f"000_{n:04d}.png" for n in range(2)]
    assert [first[f"CameraRGB/{name[:-4]}"] for name in names] == [f"CameraSeg/{n}" for n in names]
    assert [second[f"CameraRGB/{name[:-4]}"] for name in names] == [
        f"CameraSeg/{n}" for n in reversed(names)
    ]


def test_a_list_within_an_archive(packed: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("x", "")
    text = "image,mask\n"
    text += "".join(
        f"dataA/CameraRGB/000_{n:04d}.png,dataA/CameraSeg/000_{n:04d}.png\n" for n in range(12)
    )
    (tmp_path / "pairs.csv").write_text(text)
    config = SMALL.model_copy(update={"pairs": str(tmp_path / "pairs.csv")})
    assert load_manifest(run_ingest(packed, tmp_path / "out", config)).records == 12
    with pytest.raises(UserError, match="names no pair whose files are below"):
        run_ingest(tmp_path / "x.zip", tmp_path / "out", config)


def test_listed_images_alone_are_predicted(scenes: Path, tmp_path: Path, plain_model: Path) -> None:
    _list(scenes, tmp_path / "pairs.csv")
    model = Trained(str(plain_model), "", TrainConfig())
    config = InferConfig(height=32, width=48, pairs=str(tmp_path / "pairs.csv"))
    run_infer(model, tmp_path / "out", config, source=scenes)
    counts = "FROM runs SELECT images_read, images_predicted, images_rejected"
    assert query(tmp_path / "out", counts) == [(41, 40, 1)]
    assert query(tmp_path / "out", "FROM masks SELECT count(pixel_accuracy)") == [(39,)]
    assert query(tmp_path / "out", "FROM rejects SELECT stage, code ORDER BY ALL") == [
        ("pair", "missing"),
        ("truth", "missing"),
    ]
