"""Pairs as people have them, in other folders, names and formats: read right, or refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from inference import query, run_infer
from ingesting import records_of, run_ingest
from jobs import SMALL, Trained
from PIL import Image

from beam.infer.plan import plan_job
from images import png
from runtime.errors import UserError
from schemas.classes import load_taxonomy
from schemas.config import InferConfig, TrainConfig
from schemas.layout import SPLITS
from schemas.manifest import load_manifest

COUNT = 10
SIZE = {"height": 32, "width": 48}


def _write(
    scenes: Path,
    folder: Path,
    image: str,
    mask: str,
    change: Callable[[np.ndarray], np.ndarray] = lambda ids: ids,
    **options,
) -> Path:
    """Writes a few scenes under names with their number in them; masks hold changed class ids."""
    for number, path in enumerate(sorted((scenes / "CameraRGB").iterdir())[:COUNT]):
        ids = np.asarray(Image.open(scenes / "CameraSeg" / path.name).getchannel("R"))
        for name, picture, given in (
            (image, Image.open(path), options),
            (mask, Image.fromarray(change(ids)), {}),
        ):
            file = folder / name.format(f"{number:03d}")
            file.parent.mkdir(parents=True, exist_ok=True)
            picture.save(file, **given)
    return folder


def _masks(dataset: Path) -> dict[str, np.ndarray]:
    return {
        one.id: png.decode_ids(one.mask) for split in SPLITS for one in records_of(dataset, split)
    }


@pytest.fixture(scope="module")
def expected(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """The masks of the scenes in the default layout, by number."""
    folder = tmp_path_factory.mktemp("plain")
    _write(scenes, folder, "CameraRGB/{}.png", "CameraSeg/{}.png")
    found = _masks(run_ingest(folder, folder / "out"))
    assert len(found) == COUNT
    return [found[f"{number:03d}"] for number in range(COUNT)]


@pytest.mark.parametrize(
    ("image", "mask", "options", "sample_id"),
    [
        ("run/rgb/{}.jpg", "run/semantic/{}.png", {"layout": "carla"}, "run/{}"),
        (
            "leftImg8bit/train/bonn/bonn_{}_leftImg8bit.png",
            "gtFine/train/bonn/bonn_{}_gtFine_labelIds.png",
            {"layout": "cityscapes"},
            "train/bonn/bonn_{}",
        ),
        ("CamVid/val/{}.png", "CamVid/valannot/{}.png", {"layout": "camvid"}, "CamVid/val/{}"),
        ("x/{}.png", "x/{}_L.png", {"images": "x/{id}.png", "masks": "x/{id}_L.png"}, "{}"),
        ("cameraRGB/cameraRGB/{}.jpeg", "cameraSEG/{}.png", {}, "{}"),
    ],
)
def test_each_layout_gives_the_same_records(
    scenes: Path, tmp_path: Path, expected, image: str, mask: str, options, sample_id: str
) -> None:
    raw = _write(scenes, tmp_path / "raw", image, mask, quality=95)
    (raw / "notes.txt").touch()
    # The folder of one split would leave the others empty.
    config = SMALL.model_copy(update={**options, "given_splits": "ignore"})
    found = run_ingest(raw, tmp_path / "out", config)
    masks = _masks(found)
    assert sorted(masks) == [sample_id.format(f"{number:03d}") for number in range(COUNT)]
    for number, ids in enumerate(expected):
        assert np.array_equal(masks[sample_id.format(f"{number:03d}")], ids)
    manifest = load_manifest(found)
    assert (manifest.files_listed, manifest.skipped) == (2 * COUNT + 1, {"outside the layout": 1})


def test_camvids_void_and_cityscapes_ids(scenes: Path, tmp_path: Path) -> None:
    def camvid(ids: np.ndarray) -> np.ndarray:
        return np.minimum(ids, 11).astype(np.uint8)

    raw = _write(
        scenes, tmp_path / "camvid", "CamVid/test/{}.png", "CamVid/testannot/{}.png", camvid
    )
    anew = {"given_splits": "ignore"}
    config = SMALL.model_copy(update={"layout": "camvid", "taxonomy": "camvid-11", **anew})
    for ids in _masks(run_ingest(raw, tmp_path / "out", config)).values():
        assert set(np.unique(ids)) <= {*range(11), 255}
    taxonomy = load_taxonomy("cityscapes")
    raw_ids = np.array([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 26], np.uint8)
    names = (
        "leftImg8bit/train/a/a_{}_leftImg8bit.png",
        "gtFine/train/a/a_{}_gtFine_labelIds.png",
    )
    raw = _write(scenes, tmp_path / "cityscapes", *names, lambda ids: raw_ids[ids])
    config = SMALL.model_copy(update={"layout": "cityscapes", "taxonomy": "cityscapes", **anew})
    found = run_ingest(raw, tmp_path / "out2", config)
    assert all(set(np.unique(ids)) <= set(range(19)) for ids in _masks(found).values())
    pixels = load_manifest(found).splits["train"].class_pixels
    assert pixels["road"] > 0
    assert list(pixels) == list(taxonomy.names)


@pytest.mark.parametrize(
    ("image", "mask", "change", "advice"),
    [
        ("rgb/{}.png", "semantic/{}.png", lambda ids: ids, r"these files fit --layout carla"),
        (
            "CameraRGB/{}_leftImg8bit.png",
            "CameraSeg/{}_gtFine_labelIds.png",
            lambda ids: ids,
            r"--images '\*\*/CameraRGB/\{id\}_leftImg8bit.png' --masks '.*\{id\}_gtFine_labelIds",
        ),
        ("CameraRGB/{}.png", "CameraSeg/{}.png", lambda ids: ids * 20, "class ids times 20"),
        (
            "CameraRGB/{}.png",
            "CameraSeg/{}.png",
            lambda ids: np.where(np.arange(len(ids))[:, None] < 9, np.uint8(255), ids),
            "--void 255",
        ),
        ("CameraRGB/{}.png", "CameraSeg/{}.png", lambda ids: ids.astype(np.uint16), "16 bits"),
        ("pictures/{}.png", "labels/{}.png", lambda ids: ids, "other layouts are camvid, carla"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_helps(
    scenes: Path, tmp_path: Path, image: str, mask: str, change, advice: str
) -> None:
    raw = _write(scenes, tmp_path / "raw", image, mask, change)
    with pytest.raises(UserError, match=advice) as caught:
        run_ingest(raw, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_what_fits_only_some_pairs_is_not_advised(scenes: Path, tmp_path: Path) -> None:
    """Half of the pairs, or fewer, share the fault."""
    raw = _write(scenes, tmp_path / "raw", "CameraRGB/{}.png", "CameraSeg/{}.png")
    for mask in sorted((raw / "CameraSeg").iterdir())[: COUNT // 2]:
        ids = np.asarray(Image.open(mask))
        Image.fromarray(np.where(np.arange(len(ids))[:, None] < 9, np.uint8(255), ids)).save(mask)
    with pytest.raises(UserError, match=r"50.0% of the inputs are rejects \(5 unknown") as caught:
        run_ingest(raw, tmp_path / "out")
    assert "--void 255" not in str(caught.value)


def test_void_is_read_alike_by_both_jobs(scenes: Path, tmp_path: Path, plain_model: Path) -> None:
    def top_void(ids: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(ids))[:, None] < 30, np.uint8(255), ids)

    raw = _write(scenes, tmp_path / "raw", "CameraRGB/{}.png", "CameraSeg/{}.png", top_void)
    config = SMALL.model_copy(update={"void": "255"})
    assert all((ids[:8] == 255).all() for ids in _masks(run_ingest(raw, tmp_path, config)).values())

    def true_pixels(output: Path, **options: str) -> list[tuple]:
        model = Trained(str(plain_model), "", TrainConfig())
        run_infer(model, output, InferConfig(**SIZE, **options), source=raw)
        return query(output, "FROM class_stats SELECT sum(true_pixel_count) GROUP BY image_id")

    assert true_pixels(tmp_path / "plain") == [(None,)] * COUNT
    # A quarter of 120 rows of 160 pixels is void.
    assert true_pixels(tmp_path / "void", void="255") == [(90 * 160,)] * COUNT


def test_files_that_do_not_add_up_publish_nothing(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from beam.shared import list_pairs, pairing

    pair = pairing.pair_candidates

    def lossy(candidates, **options):
        yield from list(pair(candidates, **options))[1:]

    monkeypatch.setattr(list_pairs.pairing, "pair_candidates", lossy)
    with pytest.raises(RuntimeError, match="files were listed, but"):
        run_ingest(
            _write(scenes, tmp_path / "raw", "CameraRGB/{}.png", "CameraSeg/{}.png"),
            tmp_path / "out",
        )
    assert not list((tmp_path / "out/small").glob("[!.]*"))


def test_masks_are_never_predicted(scenes: Path, tmp_path: Path, plain_model: Path) -> None:
    raw = _write(scenes, tmp_path / "raw", "rgb/{}.png", "semantic/{}.png")

    def images(source: Path, **options: str) -> int:
        config = InferConfig(**SIZE, **options)
        job = plan_job(str(plain_model), str(source), None, config, "", 1, str(tmp_path))
        return job.images

    with pytest.raises(UserError, match="pass --layout carla, or a folder of images alone"):
        images(raw)
    assert images(raw, layout="carla") == COUNT
    assert images(raw / "rgb") == COUNT
