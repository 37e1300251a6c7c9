"""Images with their truth and prediction, as report and overlay show them."""

from pathlib import Path

import duckdb
import numpy as np
import pytest
from inference import pixels_of, published_run
from PIL import Image

from analysis.pictures import load_scenes
from images.panels import WRONG_COLOUR
from images.png import encode
from schemas.classes import load_taxonomy
from schemas.stats import ConfusionMatrix


def test_scenes_agree_with_the_tables(database, scenes: Path) -> None:
    run = published_run(database, source="driveA")
    rows = database.sql(
        "SELECT image_id, source_uri, pixel_accuracy FROM masks"
        " WHERE version = 'v1' AND source = 'driveA' ORDER BY image_id DESC LIMIT 3"
    ).fetchall()
    loaded = load_scenes(database, run, [row[0] for row in rows])
    for scene, (image_id, uri, accuracy) in zip(loaded, rows, strict=True):
        assert scene.image_id == image_id
        assert np.array_equal(scene.image, pixels_of(uri))
        assert np.array_equal(scene.truth, pixels_of(scenes / "CameraSeg" / Path(uri).name)[..., 0])
        wrong = (scene.errors() == WRONG_COLOUR).all(axis=-1)
        assert 1 - wrong.mean() == pytest.approx(accuracy)
        blend = (scene.image.astype(int) + scene.coloured_truth()) // 2
        right = scene.mask == scene.truth
        assert np.array_equal(scene.prediction()[right], blend[right])


@pytest.mark.parametrize("source", ["lyft", "driveA"])
def test_truth_of_a_target_is_shown(database, source: str) -> None:
    run = published_run(database, source=source)
    image_id, uri, sha256 = database.execute(
        "SELECT image_id, source_uri, image_sha256 FROM masks"
        " WHERE version = 'v1' AND source = $source LIMIT 1",
        {"source": source},
    ).fetchone()
    (scene,) = load_scenes(database, run, [image_id])
    binary, table = load_taxonomy("carla-0.8").one_vs_rest(["Roads", "RoadLines"])
    truth, mask = table[scene.truth], table[scene.mask]
    matrix = ConfusionMatrix.of(truth, mask, 2).counts.ravel().tolist()
    key = [run[name] for name in ("model", "version", "source")]
    with duckdb.connect() as tables:
        tables.execute(
            "CREATE TABLE masks AS SELECT ? AS model, ? AS version, ? AS source, ? AS image_id,"
            " ? AS source_uri, ? AS image_sha256, {'bytes': ?::BLOB} AS mask, ? AS confusion",
            [*key, image_id, uri, sha256, encode(mask), matrix],
        )
        tables.execute(
            "CREATE TABLE classes AS SELECT ? AS model, ? AS version, ? AS source,"
            " unnest([0, 1]) AS class_id, unnest(?) AS class_name, '#000000' AS color",
            [*key, list(binary.names)],
        )
        changed = {"taxonomy": binary.name, "taxonomy_sha256": binary.sha256}
        (found,) = load_scenes(tables, run | changed, [image_id])
    assert np.array_equal(found.truth, truth)


def test_changed_truth_is_not_shown(database) -> None:
    run = published_run(database, source="driveA")
    uri, image_id = database.sql(
        "SELECT source_uri, image_id FROM masks WHERE version = 'v1' AND source = 'driveA' LIMIT 1"
    ).fetchall()[0]
    mask = Path(uri.replace("CameraRGB", "CameraSeg"))
    kept = mask.read_bytes()
    try:
        Image.new("RGB", (160, 120)).save(mask)
        (scene,) = load_scenes(database, run, [image_id])
    finally:
        mask.write_bytes(kept)
    assert scene.truth is None
    assert scene.image is not None
