"""OpenVINO and TensorFlow predict the same, at any size and precision; the parity report."""

import dataclasses
import functools
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from jobs import Job, python

from beam import parity
from beam.infer.engines import base, choice
from beam.infer.engines.base import Engine, Runtime
from beam.infer.engines.choice import choose_runtime, load_engine
from beam.infer.engines.openvino import OpenVINOEngine
from beam.infer.model_uri import ResolvedModel, resolve_model, with_graph
from beam.infer.pictures import Picture
from runtime.errors import UserError
from schemas.classes import load_taxonomy
from schemas.config import InferConfig
from schemas.stats import ConfusionMatrix

RUNTIME = Runtime("openvino", "float32", batch_size=4, processes=1000)
ENGINES = ("openvino", "tensorflow")


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 32, 48, 3), np.uint8)


@pytest.fixture(scope="module")
def model(trained) -> ResolvedModel:
    return resolve_model(trained.model, InferConfig(), trained.tracking_uri)


def _engine(model: ResolvedModel, name: str = "openvino", **changes) -> Engine:
    return load_engine(model, dataclasses.replace(RUNTIME, engine=name, **changes))


@pytest.fixture(scope="module")
def engine(model: ResolvedModel) -> Callable[..., Engine]:
    """Engines of the model, each loaded once; tests do not change them."""
    return functools.cache(functools.partial(_engine, model))


def _saved(network, folder: Path, classes: int) -> ResolvedModel:
    """Saves a network as a plain file, its graph beside it, and resolves it as a job does."""
    from model.export import export_openvino

    path = folder / "plain.keras"
    network.save(path)
    export_openvino(path, folder / "openvino")
    taxonomy = load_taxonomy("carla-0.8")
    taxonomy = taxonomy.model_copy(update={"classes": taxonomy.classes[:classes]})
    found = resolve_model(str(path), InferConfig(height=32, width=48), "")
    assert found.graph is not None
    return dataclasses.replace(found, taxonomy=taxonomy)


def test_the_graph_is_logged_with_the_model(model: ResolvedModel) -> None:
    assert model.graph is not None
    assert Path(model.graph).parts[-2:] == ("openvino", "unet.xml")
    assert (model.height, model.width) == (32, 48)


def test_engines_agree(engine, images: np.ndarray) -> None:
    ids, confidence = engine("openvino").predict(images)
    expected_ids, expected = engine("tensorflow").predict(images)
    assert ids.dtype == np.uint8
    assert confidence.dtype == np.float32
    assert ids.shape == confidence.shape == (7, 32, 48)
    assert np.allclose(confidence, expected, atol=1e-4)
    # A pixel may differ if two classes are equally likely.
    assert (ids == expected_ids).mean() > 0.999


@pytest.mark.parametrize("name", ENGINES)
def test_an_image_does_not_depend_on_those_beside_it(engine, images, name: str) -> None:
    ids, confidence = engine(name).predict(images)
    for position in (0, 3, 6):
        alone = engine(name).predict(images[position : position + 1])
        assert np.array_equal(alone[0][0], ids[position])
        assert np.array_equal(alone[1][0], confidence[position])


@pytest.mark.parametrize("name", ENGINES)
def test_a_size_that_the_network_does_not_take_is_mirrored(
    model, engine, images, name: str
) -> None:
    odd = images[:, :30, :41]
    ids, confidence = _engine(dataclasses.replace(model, height=30, width=41), name).predict(odd)
    padded = np.pad(odd, ((0, 0), (0, 2), (0, 7), (0, 0)), mode="symmetric")
    expected_ids, expected = engine(name).predict(padded)
    assert np.array_equal(ids, expected_ids[:, :30, :41])
    assert np.array_equal(confidence, expected[:, :30, :41])


@pytest.mark.parametrize("name", ENGINES)
def test_half_the_batch_finds_the_same(model, images, name: str) -> None:
    engine = _engine(model, name)
    ids, _ = engine.predict(images)
    assert [engine.halve_batch(), engine.batch_size] == [True, 2]
    assert (engine.predict(images)[0] == ids).mean() > 0.999
    assert [engine.halve_batch(), engine.halve_batch(), engine.batch_size] == [True, False, 1]


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("classes", [13, 2])
def test_flipped_predictions_are_means_over_an_image_and_its_mirror_image(
    tmp_path: Path, images: np.ndarray, name: str, classes: int
) -> None:
    import keras
    from scipy.special import expit, softmax

    from model.unet import unet

    keras.utils.set_random_seed(1)
    network = unet(13 if classes == 13 else 1, filters=2)
    model = dataclasses.replace(_saved(network, tmp_path, classes), height=30, width=41)
    odd = images[:, :30, :41]
    padded = np.pad(odd, ((0, 0), (0, 2), (0, 7), (0, 0)), mode="symmetric")
    straight, mirrored = (np.asarray(network(batch)) for batch in (padded, padded[:, :, ::-1]))
    probabilities = functools.partial(softmax, axis=-1) if classes == 13 else expit
    mean = (probabilities(straight) + probabilities(mirrored)[:, :, ::-1])[:, :30, :41] / 2
    if classes == 2:
        mean = np.concatenate([1 - mean, mean], axis=-1)
    ids, confidence = _engine(model, name, flip=True).predict(odd)
    assert confidence == pytest.approx(mean.max(axis=-1), abs=1e-4)
    assert (ids == mean.argmax(axis=-1)).mean() > 0.999
    alone, _ = _engine(model, name).predict(odd)
    assert (ids == alone).mean() < 0.999


def test_one_logit_stands_for_two_classes(tmp_path: Path, images) -> None:
    import keras

    inputs = keras.Input((None, None, 3))
    logits = keras.layers.Conv2D(
        1,
        1,
        kernel_initializer=keras.initializers.Constant(0.01),
        bias_initializer=keras.initializers.Constant(-4),
    )
    model = _saved(keras.Model(inputs, logits(inputs)), tmp_path, 2)
    expected = images.sum(axis=-1, dtype=np.float64) * 0.01 - 4
    clear = np.abs(expected) > 1e-3
    for name in ENGINES:
        ids, confidence = _engine(model, name).predict(images)
        assert np.array_equal(ids[clear], (expected > 0)[clear])
        assert np.allclose(confidence, 1 / (1 + np.exp(-np.abs(expected))), atol=1e-5)
        assert 0 < ids.mean() < 1


def test_a_network_trained_in_mixed_precision_is_exported_in_float32(tmp_path, images) -> None:
    import keras

    from model.unet import unet

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = _saved(unet(13, filters=2), tmp_path, 13)
    finally:
        keras.config.set_dtype_policy("float32")
    assert "bf16" not in Path(str(model.graph)).read_text()
    found, expected = (_engine(model, name).predict(images) for name in ENGINES)
    assert np.allclose(found[1], expected[1], atol=1e-4)
    assert (found[0] == expected[0]).mean() > 0.999


def test_lower_precision_is_another_sum(engine, images: np.ndarray) -> None:
    expected = engine("openvino").predict(images)[1]
    lower = engine("tensorflow", precision="bfloat16").predict(images)[1]
    assert 0 < np.abs(lower - expected).max() < 0.2


def test_a_graph_of_another_file_is_passed_over(tmp_path: Path) -> None:
    import keras

    from model.unet import unet

    keras.utils.set_random_seed(0)
    path, config = str(tmp_path / "unet.keras"), InferConfig(height=32, width=48)
    unet(3, filters=2).save(path)
    assert resolve_model(path, config, "").graph is None
    made = with_graph(resolve_model(path, config, ""), tmp_path / "openvino")
    assert made.graph is not None
    assert resolve_model(path, config, "").graph == made.graph
    keras.utils.set_random_seed(1)
    unet(3, filters=2).save(path)
    assert resolve_model(path, config, "").graph is None


def test_a_damaged_graph_is_named(model: ResolvedModel, tmp_path: Path) -> None:
    (tmp_path / "unet.xml").write_text("no graph")
    damaged = dataclasses.replace(model, graph=str(tmp_path / "unet.xml"))
    with pytest.raises(UserError, match=r"model graph .*unet\.xml' cannot be read: (?!Exception)"):
        _engine(damaged)


def test_a_file_that_cannot_be_exported_is_named(tmp_path: Path) -> None:
    from model.export import export_openvino

    path = tmp_path / "unet.keras"
    path.write_bytes(b"PK no archive")
    with pytest.raises(UserError, match=r"^model file .*unet\.keras' cannot be loaded: "):
        export_openvino(path, tmp_path / "openvino")


def test_openvino_needs_no_tensorflow(model: ResolvedModel) -> None:
    program = f"""
import sys
import numpy as np
import beam.infer.pipeline
from beam.infer.engines.base import Runtime
from beam.infer.engines.choice import load_engine
from beam.infer.model_uri import ResolvedModel
from schemas.classes import load_taxonomy
model = ResolvedModel("", "", "", "", "", load_taxonomy("carla-0.8"), 32, 48, "nearest",
                      graph={model.graph!r})
engine = load_engine(model, {RUNTIME!r})
engine.predict(np.zeros((1, 32, 48, 3), np.uint8))
found = {{"tensorflow", "keras", "openvino_telemetry.main"}} & set(sys.modules)
sys.exit(f"imported: {{found}}" if found else 0)
"""
    done = python("-c", program)
    assert done.returncode == 0, done.stderr


def test_what_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results do not depend on the machine, unless the fastest precision is asked for."""
    monkeypatch.setattr(choice, "has_fast_bfloat16", lambda: True)
    monkeypatch.setattr(choice, "has_gpu", lambda: False)
    plain = Runtime("openvino", "float32", 4, processes=1000)
    assert choose_runtime(InferConfig(), 1000) == plain
    fastest = InferConfig(precision="auto")
    assert choose_runtime(fastest, 1000) == dataclasses.replace(plain, precision="bfloat16")
    named = InferConfig(engine="tensorflow", batch_size=5)
    assert choose_runtime(named, 1000) == Runtime("tensorflow", "float32", 5, processes=1000)
    monkeypatch.setattr(choice, "has_gpu", lambda: True)
    on_gpu = Runtime("tensorflow", "float32", 64, processes=1000)
    assert choose_runtime(InferConfig(), 1000) == on_gpu
    assert choose_runtime(fastest, 1000) == dataclasses.replace(on_gpu, precision="float16")
    # Workers on other machines have other processors.
    assert (
        choose_runtime(fastest, 0)
        == choose_runtime(InferConfig(), 0)
        == dataclasses.replace(plain, processes=0)
    )


def test_threads_are_those_of_the_machine_that_predicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "has_gpu", lambda: False)
    runtime = pickle.loads(pickle.dumps(choose_runtime(InferConfig(), 4)))
    elsewhere = pickle.loads(pickle.dumps(choose_runtime(InferConfig(engine="tensorflow"), 0)))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    assert (runtime.threads, runtime.shared) == (3, False)
    assert (elsewhere.threads, elsewhere.shared) == (1, False)
    monkeypatch.setattr(base, "has_gpu", lambda: True)
    assert (runtime.threads, runtime.shared) == (3, False)
    assert (elsewhere.threads, elsewhere.shared) == (12, True)


def test_a_large_model_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "total_memory", lambda: 1.5e9)
    assert not choose_runtime(InferConfig(), 4, 35_000_000).shared
    large = choose_runtime(InferConfig(), 4, 50_000_000)
    assert large.shared
    assert large.threads == len(os.sched_getaffinity(0))
    monkeypatch.undo()
    assert base.total_memory() > 1e6


def _pictures(images: np.ndarray) -> Iterator[Picture]:
    random = np.random.default_rng(1)
    for position, pixels in enumerate(images):
        truth = random.integers(0, 13, (64, 96), np.uint8)
        yield Picture(str(position), "", "", "test", 96, 64, pixels, truth, "")


def test_parity_is_what_numpy_says(model: ResolvedModel, engine, images: np.ndarray) -> None:
    reference = engine("tensorflow")
    lower = engine("tensorflow", precision="bfloat16")
    size = (model.height, model.width)
    found = parity.measure(_pictures(images), reference, lower, model.taxonomy.names, size)
    (ids, confidence), (other_ids, other) = reference.predict(images), lower.predict(images)
    assert found.images == len(images)
    assert found.equal_share == (ids == other_ids).mean() < 1
    assert found.confidence_change == np.abs(confidence - other).max()
    truth = np.stack([picture.truth[1::2, 1::2] for picture in _pictures(images)])
    ious = [ConfusionMatrix.of(truth, one, 13).iou() for one in (other_ids, ids)]
    change = ious[0] - ious[1]
    assert abs(found.iou_change[0]) == np.nanmax(np.abs(change)) > 0
    assert change[list(model.taxonomy.names).index(found.iou_change[1])] == found.iou_change[0]
    same = parity.measure(_pictures(images), reference, reference, model.taxonomy.names, size)
    assert (same.equal_share, same.confidence_change, same.iou_change[0]) == (1, 0, 0)


def test_without_any_truth_there_is_no_parity(
    model: ResolvedModel, engine, images: np.ndarray
) -> None:
    one_engine = engine("tensorflow")
    void = (
        dataclasses.replace(one, truth=np.full_like(one.truth, 255)) for one in _pictures(images)
    )
    for pictures in (void, iter(())):
        with pytest.raises(UserError, match="no IoU can be compared"):
            parity.measure(pictures, one_engine, one_engine, model.taxonomy.names, (32, 48))


def test_the_parity_report(job_here: Job, trained, dataset: Path) -> None:
    arguments = [f"--dataset={dataset}", f"--tracking_uri={trained.tracking_uri}"]
    done = job_here(
        "beam.parity",
        f"--model={trained.model}",
        *arguments,
        "--engine=tensorflow",
        *("--precisions", "float32", "bfloat16"),
    )
    assert done.returncode == 0, done.stderr
    head, _, first, second = done.stdout.splitlines()
    assert head.startswith("| engine | precision | images | equal pixels |")
    assert first.startswith("| tensorflow | float32 | 4 | 100.0000% | 0.0000 | ")
    assert second.startswith("| tensorflow | bfloat16 | 4 | ")
    done = job_here("beam.parity", f"--model={trained.model}", *arguments, "--split=all")
    assert done.returncode == 2
    assert done.stderr == "error: expected one split: --split=train, validation or test\n"
    windows = ("--windows=on", "--height=16", "--width=32", "--engine=tensorflow")
    done = job_here("beam.parity", f"--model={trained.model}", *arguments, *windows)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("| tensorflow | float32 | 4 | 100.0000% | 0.0")


SCARCE = """
import os, resource, sys
import numpy as np
from beam.infer.engines.base import Runtime
from beam.infer.engines.choice import load_engine
from beam.infer.model_uri import ResolvedModel
from schemas.classes import load_taxonomy

model = ResolvedModel("plain", "", "", "", "", load_taxonomy("carla-0.8"), 96, 128, "nearest",
                      graph=sys.argv[1])
load_engine(model, Runtime("openvino", "float32", 1, processes=1000))
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
limit = used + int(sys.argv[2]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
engine = load_engine(model, Runtime("openvino", "float32", 1024, processes=1000))
ids, _ = engine.predict(np.zeros((3, 96, 128, 3), np.uint8))
print(engine.batch_size, ids.shape)
"""


def test_a_batch_too_large_for_the_memory_is_made_smaller(plain_model: Path) -> None:
    graph = plain_model.parent / "openvino/unet.xml"
    done = python("-c", SCARCE, str(graph), "200")
    assert done.returncode == 0, done.stderr
    batch_size, shape = done.stdout.split(maxsplit=1)
    assert 1 <= int(batch_size) < 1024
    assert shape == "(3, 96, 128)\n"


def test_an_image_too_large_for_the_memory_is_a_mistake(model, monkeypatch) -> None:
    tried: list[int] = []

    def fail(_: object, shape: tuple[int, ...]):
        tried.append(shape[0])
        raise RuntimeError(
            "Exception from cpu.cpp:84:\nFailed to allocate 603979776 bytes of memory"
        )

    monkeypatch.setattr(OpenVINOEngine, "_compile", fail)
    with pytest.raises(UserError, match=r"one image of 48x32 does not fit into the memory; free"):
        _engine(model)
    assert tried == [4, 2, 1]


def test_parity_refuses_a_dataset_of_other_classes(
    job: Job, plain_model: Path, dataset: Path
) -> None:
    arguments = (f"--model={plain_model}", f"--dataset={dataset}", "--taxonomy=carla-0.9")
    done = job("beam.parity", *arguments, "--engine=openvino")
    assert done.returncode == 2
    assert "predicts taxonomy carla-0.9, but dataset" in done.stderr
    assert done.stderr.count("\n") == 1
