"""Training on JAX: without TensorFlow, by the same augmentation, with the same errors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from jobs import QUICK, flip_bit, python

from model.backend import choose, import_keras
from runtime.errors import UserError
from schemas.config import TrainConfig
from schemas.manifest import load_manifest

TRAINED = """
import json, sys
from pathlib import Path
import numpy as np
from model.backend import import_keras

dataset, damaged, folder = sys.argv[1:]
import_keras("jax")
import jax
from model.augment import augment
from model.checkpoint import Checkpoint
from model.dataset import DatasetInput
from model.evaluation import evaluate, predict
from model.fit import fit
from model.plan import plan
from runtime.errors import UserError
from schemas.config import TrainConfig

with np.load(f"{folder}/batch.npz") as given:
    config = TrainConfig(weather=0)
    change = jax.jit(lambda *batch: augment(*batch[:2], batch[2:], config))
    images, masks = change(*(given[name] for name in ("images", "masks", "numbers", "key")))
np.savez(f"{folder}/augmented.npz", images=images, masks=masks)

config = TrainConfig(**json.loads(Path(folder, "config.json").read_text()))
chosen = plan(dataset, config)
state = Path(folder, "state")
state.mkdir()
network, progress = fit(chosen, Checkpoint(state), lambda _: None, print)
source = DatasetInput(chosen)
found = evaluate(network, source, chosen.taxonomy, "validation").metrics("val_")
assert np.isclose(progress.epochs[-1]["val_mean_iou"], found["val_mean_iou"], atol=1e-6), found
network.save(f"{folder}/unet.keras")
image, _ = next(source.pairs("test"))
np.save(f"{folder}/predicted.npy", predict(network, source, image))
try:
    fit(plan(damaged, config), Checkpoint(state / "none"), lambda _: None, print)
except UserError as error:
    print(error)
try:
    import_keras("tensorflow")
except UserError as error:
    print(error)
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def folder(dataset: Path, tmp_path_factory) -> Path:
    """What a process with JAX makes of a batch, a dataset and a damaged one."""
    from model.augment import draw

    folder = tmp_path_factory.mktemp("jax")
    damaged = Path(shutil.copytree(dataset, folder / "damaged"))
    flip_bit(damaged / load_manifest(damaged).shard_names("train")[0])
    # Read from the shards, in a thread beside the training.
    config = {**QUICK, "augment": "on", "cache_mib": 0, "keep": "last", "epochs": 2}
    (folder / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (4, 32, 48, 3)).astype(np.uint8)
    masks = random.integers(0, 13, (4, 32, 48, 1)).astype(np.uint8)
    numbers, key = draw(0, 0, 0, 4)
    np.savez(folder / "batch.npz", images=images, masks=masks, numbers=numbers, key=key)
    done = python("-c", TRAINED, str(dataset), str(damaged), str(folder))
    assert done.returncode == 0, done.stderr
    (folder / "said").write_text(done.stdout)
    return folder


def test_augmentation_is_that_of_tensorflow(folder: Path) -> None:
    from model.augment import augment

    with np.load(folder / "batch.npz") as batch, np.load(folder / "augmented.npz") as found:
        draws = batch["numbers"], batch["key"]
        config = TrainConfig(weather=0)
        images, masks = augment(batch["images"], batch["masks"], draws, config)
        assert np.array_equal(found["masks"], masks)
        assert np.allclose(found["images"], images, atol=0.01)


def test_a_network_trained_on_jax_predicts_the_same_on_tensorflow(folder, dataset) -> None:
    from model.dataset import DatasetInput
    from model.evaluation import predict
    from model.export import load_network
    from model.plan import plan

    config = TrainConfig(**json.loads((folder / "config.json").read_text()))
    source = DatasetInput(plan(str(dataset), config))
    image, _ = next(source.pairs("test"))
    predicted = predict(load_network(folder / "unet.keras"), source, image)
    assert (predicted == np.load(folder / "predicted.npy")).mean() > 0.99


def test_a_damaged_shard_is_named(folder: Path) -> None:
    name = load_manifest(folder / "damaged").shard_names("train")[0]
    assert f"shard {name} is damaged; ingest again" in (folder / "said").read_text()


def test_a_process_cannot_change_its_backend(folder: Path) -> None:
    said = "backend tensorflow: in this process, Keras runs on jax already; train in another"
    assert said in (folder / "said").read_text()
    import_keras()
    with pytest.raises(UserError, match="Keras runs on tensorflow already"):
        import_keras("jax")


def test_auto_takes_jax_where_it_has_a_gpu(tmp_path, monkeypatch) -> None:
    from model import backend

    driver = tmp_path / "version"
    installed: set[str] = {"jax"}
    monkeypatch.setattr(backend, "_NVIDIA_DRIVER", driver)
    monkeypatch.setattr(backend, "find_spec", lambda name: name in installed or None)
    assert choose("auto") == "tensorflow"
    driver.touch()
    assert choose("auto") == "tensorflow"
    installed.add("jax_cuda12_plugin")
    assert choose("auto") == "jax"
    assert choose("tensorflow") == "tensorflow"
    driver.unlink()
    assert choose("auto") == "tensorflow"
    assert choose("jax") == "jax"
    installed.clear()
    with pytest.raises(UserError, match="JAX is not installed; install the extra jax"):
        choose("jax")
