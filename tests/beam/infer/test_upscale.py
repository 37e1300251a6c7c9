"""Logits scaled up before classes are chosen: their values, the tables, what is not reused."""

import dataclasses
import functools
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from inference import counts_of, query, run_infer
from PIL import Image
from scipy.special import expit, softmax

from beam.infer.engines.base import Runtime
from beam.infer.engines.choice import load_engine
from beam.infer.model_uri import ResolvedModel, resolve_model
from beam.infer.pictures import Picture
from beam.parity import measure
from schemas.classes import load_taxonomy
from schemas.config import InferConfig

HEIGHT, WIDTH = 30, 41
"""A size that the network does not take."""

Logits = Callable[[np.ndarray], np.ndarray]


Network = Callable[[int], tuple[ResolvedModel, Logits]]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """An untrained network of 13 or 2 classes, and its logits (height, width, classes or 1)."""

    @functools.cache
    def made(classes: int) -> tuple[ResolvedModel, Logits]:
        import keras

        from model.export import export_openvino
        from model.unet import unet

        keras.utils.set_random_seed(1)
        network, folder = unet(13 if classes == 13 else 1, filters=2), tmp_path_factory.mktemp("it")
        path = folder / "plain.keras"
        network.save(path)
        export_openvino(path, folder / "openvino")
        taxonomy = load_taxonomy("carla-0.8")
        taxonomy = taxonomy.model_copy(update={"classes": taxonomy.classes[:classes]})
        found = resolve_model(str(path), InferConfig(height=HEIGHT, width=WIDTH), "")

        def logits(image: np.ndarray) -> np.ndarray:
            padded = np.pad(image, ((0, 2), (0, 7), (0, 0)), mode="symmetric")
            return np.asarray(network(padded[None]))[0]

        return dataclasses.replace(found, taxonomy=taxonomy), logits

    return made


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH, 3), np.uint8)


@pytest.mark.parametrize("name", ["openvino", "tensorflow"])
@pytest.mark.parametrize("classes", [13, 2])
def test_classes_are_chosen_from_logits_that_are_scaled_up(
    network: Network, images: np.ndarray, name: str, classes: int
) -> None:
    model, logits = network(classes)
    runtime = Runtime(name, "float32", batch_size=2, processes=1000, upscale=3)  # type: ignore[arg-type]
    ids, confidence = load_engine(model, runtime).predict(images)
    assert ids.shape == confidence.shape == (3, 3 * HEIGHT, 3 * WIDTH)
    for image, found, sure in zip(images, ids, confidence, strict=True):
        small = logits(image)
        large = [
            Image.fromarray(channel).resize(
                (3 * small.shape[1], 3 * small.shape[0]), Image.Resampling.BILINEAR
            )
            for channel in small.transpose(2, 0, 1)
        ]
        expected = np.stack(list(map(np.asarray, large)), axis=2)[: 3 * HEIGHT, : 3 * WIDTH]
        if classes == 2:
            second = expit(expected)
            probabilities = np.concatenate([1 - second, second], axis=2)
        else:
            probabilities = softmax(expected, axis=2)
        assert sure == pytest.approx(probabilities.max(axis=2), abs=1e-4)
        assert (found == probabilities.argmax(axis=2)).mean() > 0.999


def test_masks_of_frames_have_finer_boundaries(trained, scenes: Path, tmp_path: Path) -> None:
    """The scenes are 160x120, the network's input 48x32; rows of another scale are not reused."""
    sql = "FROM masks SELECT image_id, mask.bytes, width, height ORDER BY image_id"
    coarse = query(run_infer(trained, tmp_path, source=scenes), sql)
    output = run_infer(trained, tmp_path, InferConfig(upscale=2), source=scenes)
    assert counts_of(output) == (40, 40, 0, 0)
    same, counted = [], []
    for (name, before, *size), (other, after, *_) in zip(coarse, query(output, sql), strict=True):
        one, two = (np.asarray(Image.open(io.BytesIO(data))) for data in (before, after))
        assert name == other
        assert one.shape == two.shape == tuple(reversed(size)) == (120, 160)
        same.append((one == two).mean())
        counted += np.bincount(two.ravel(), minlength=13).tolist()
    counts = query(output, "FROM class_stats SELECT pixel_count ORDER BY image_id, class_id")
    assert [count for (count,) in counts] == counted
    # Only pixels at boundaries may differ, and some do.
    assert 0.8 < np.mean(same) < 1


def test_engines_are_compared_at_the_larger_size(network: Network, images: np.ndarray) -> None:
    model, _ = network(13)
    runtime = Runtime("openvino", "float32", batch_size=2, processes=1000, upscale=2)
    reference = dataclasses.replace(runtime, engine="tensorflow")
    truth = np.zeros((HEIGHT, WIDTH), np.uint8)
    pictures = [
        Picture(str(index), "", "", None, WIDTH, HEIGHT, image, truth, "")
        for index, image in enumerate(images)
    ]
    engines = (load_engine(model, one) for one in (reference, runtime))
    found = measure(iter(pictures), *engines, model.taxonomy.names, (HEIGHT, WIDTH))
    assert (found.images, found.equal_share) == (3, pytest.approx(1, abs=1e-3))


def test_windows_need_no_larger_scale() -> None:
    with pytest.raises(ValueError, match="masks have the images' size: expected upscale 1"):
        InferConfig(windows="on", upscale=2)
