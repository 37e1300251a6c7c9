"""Export to ONNX: metadata, predictions, verification before publishing."""

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from inference import query, run_infer
from ingesting import records_of
from jobs import ROOT, SMALL, Job, Trained
from PIL import Image

from model import onnx
from runtime.errors import UserError
from schemas.config import InferConfig, TrainConfig
from schemas.geometry import ON_ENCODER, PADDED, UNPADDED, Geometry

SIZE = (SMALL.height, SMALL.width)


@pytest.fixture(scope="module")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("onnx") / "new/small.onnx"
    assert onnx.run(trained.model, str(file), trained.tracking_uri) == str(file)
    assert list(file.parent.iterdir()) == [file]
    return file


def _session(file: Path):
    import onnxruntime

    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def test_a_file_predicts_the_masks_of_the_tables(
    trained: Trained, exported: Path, dataset: Path, tmp_path: Path
) -> None:
    precise = InferConfig(engine="tensorflow", precision="float32", split="test")
    output = run_infer(trained, tmp_path, precise, dataset=dataset)
    rows = query(output, "FROM masks SELECT image_id, mask.bytes ORDER BY image_id")
    expected = np.stack([_pixels(mask) for _, mask in rows])
    images = {one.id: _pixels(one.image) for one in records_of(dataset, "test")}
    given = np.stack([images[image_id] for image_id, _ in rows])
    (ids,) = _session(exported).run(["class_ids"], {"image": given})
    assert ids.dtype == np.uint8
    assert ids.shape == expected.shape == (4, *SIZE)
    assert (ids == expected).mean() > 0.999


def _pixels(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)))


def test_the_documents_snippet_names_the_classes(
    trained: Trained, exported: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs/infer.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    picture = min((scenes / "CameraRGB").iterdir())
    (tmp_path / "street.png").symlink_to(picture)
    (tmp_path / "lyft-unet.onnx").symlink_to(exported)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(snippet, names)
    precise = InferConfig(engine="tensorflow", precision="float32")
    output = run_infer(trained, tmp_path / "tables", precise, source=scenes)
    ((mask,),) = query(
        output, f"FROM masks SELECT mask.bytes WHERE source_uri LIKE '%/{picture.name}'"
    )
    enlarged = Image.fromarray(names["class_ids"][0]).resize((160, 120), Image.Resampling.NEAREST)
    assert (np.asarray(enlarged) == _pixels(mask)).mean() > 0.999


def test_a_file_describes_input_output_and_classes(trained: Trained, exported: Path) -> None:
    session = _session(exported)
    (image,) = session.get_inputs()
    assert (image.name, image.type) == ("image", "tensor(uint8)")
    assert image.shape == ["batch", "height", "width", 3]
    outputs = {one.name: (one.type, one.shape) for one in session.get_outputs()}
    assert outputs == {
        "logits": ("tensor(float)", ["batch", "height", "width", 13]),
        "class_ids": ("tensor(uint8)", ["batch", "height", "width"]),
    }
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["classes"])[:3] == ["None", "Buildings", "Fences"]
    assert json.loads(said["taxonomy"])["classes"][7]["name"] == "Roads"
    assert Geometry.model_validate_json(said["geometry"]) == PADDED
    assert (said["height"], said["width"], said["resize"]) == ("32", "48", "nearest")
    assert said["model_uri"] == trained.model
    assert said["dataset_name"] == "small"
    assert len(said["keras_sha256"]) == 64
    # Shares from 0 to 1 would be black images.
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

    with pytest.raises(InvalidArgument, match="float"):
        session.run(None, {"image": np.zeros((1, *SIZE, 3), np.float32)})


def _network(architecture: str, classes: int, **options):
    import keras

    from model.unet import build

    keras.utils.set_random_seed(0)
    config = TrainConfig(architecture=architecture, filters=2, encoder_weights="none", **options)
    return build(config, classes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "options", "classes", "geometry"),
    [
        ("unet", {"normalisation": "group"}, 13, PADDED),
        ("unet-2015", {"normalisation": "none"}, 13, UNPADDED),
        ("unet-dropout", {"channels": 1}, 2, PADDED),
        ("unet-lite0", {}, 13, ON_ENCODER),
    ],
)
def test_every_architecture(
    architecture: str, options: dict, classes: int, geometry: Geometry, tmp_path: Path, capsys
) -> None:
    network = _network(architecture, classes, **options)
    file = tmp_path / "unet.onnx"
    file.write_bytes(onnx.convert(network).SerializeToString())
    onnx.compare(file, network, geometry, (32, 64))
    assert "onnx: logits differ from Keras's by at most " in capsys.readouterr().err


def test_constants_grouped_convolutions_and_gelu(tmp_path: Path) -> None:
    """Constants beside the weights, grouped convolutions and GELU: as in ConvNeXt, but small."""
    import keras
    from keras import layers

    image = keras.Input((None, None, 3), name="image")
    x = layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 5.0, 6.0])(
        keras.ops.cast(image, "float32")
    )
    x = layers.Conv2D(6, 3, padding="same", groups=3)(x)
    network = keras.Model(image, layers.Conv2D(4, 1)(keras.activations.gelu(x, approximate=False)))
    file = tmp_path / "unet.onnx"
    file.write_bytes(onnx.convert(network).SerializeToString())
    onnx.compare(file, network, PADDED, SIZE)


def test_an_operation_that_onnx_lacks_is_named() -> None:
    import keras
    from keras import layers

    image = keras.Input((None, None, 3), name="image")
    x = layers.Conv2D(4, 1, name="before")(keras.ops.cast(image, "float32"))
    network = keras.Model(image, keras.ops.erfinv(x))
    with pytest.raises(ValueError, match=r"^ONNX has no operation Erfinv, of \S*Erfinv$"):
        onnx.convert(network)


def test_a_file_that_predicts_something_else_is_not_published(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = onnx.convert

    def wrong(network):
        weights = network.get_layer("logits").get_weights()
        network.get_layer("logits").set_weights([weights[0], weights[1] + 0.1])
        made = convert(network)
        network.get_layer("logits").set_weights(weights)
        return made

    monkeypatch.setattr(onnx, "convert", wrong)
    file = tmp_path / "small.onnx"
    file.write_text("the one before")
    with pytest.raises(
        UserError, match=r"does not predict what Keras predicts: logits differ by 0\.1.*published"
    ):
        onnx.run(trained.model, str(file), trained.tracking_uri)
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_text() == "the one before"


def test_other_classes_are_found(tmp_path: Path) -> None:
    import onnx as standard

    network = _network("unet", 13)
    made = onnx.convert(network)
    nodes = made.graph.node
    (argmax,) = [one for one in nodes if one.op_type == "ArgMax"]
    all_zero = standard.helper.make_node("Sub", ["ids", "ids"], [argmax.output[0]])
    argmax.output[0] = "ids"
    nodes.insert(list(nodes).index(argmax) + 1, all_zero)
    file = tmp_path / "unet.onnx"
    file.write_bytes(made.SerializeToString())
    with pytest.raises(ValueError, match="pixels have another class"):
        onnx.compare(file, network, PADDED, SIZE)


def test_a_file_that_onnx_runtime_refuses(tmp_path: Path) -> None:
    file = tmp_path / "unet.onnx"
    file.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"^ONNX Runtime refuses it: "):
        onnx.compare(file, None, PADDED, SIZE)


def test_mistakes_end_in_one_line(
    trained: Trained, job_here: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"--tracking_uri={trained.tracking_uri}"

    def said(*arguments: str) -> str:
        done = job_here("model.onnx", *arguments, store)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        return done.stderr

    model, output = f"--model={trained.model}", f"--output={tmp_path}/small.onnx"
    assert "expected the name of a file, found a folder" in said(model, f"--output={tmp_path}")
    assert "expected models:/<name>/<version>" in said("--model=models:/small-unet/77", output)
    (tmp_path / "file").touch()
    assert "nothing was published" in said(model, f"--output={tmp_path}/file/small.onnx")
    for name in ("onnxruntime", "tf2onnx"):
        monkeypatch.setitem(sys.modules, name, None)
    assert said(model, output) == (
        "error: the export to ONNX needs onnxruntime, tf2onnx: pip install -e '.[onnx]'\n"
    )
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
