"""The model that MLflow serves: the masks of beam.infer for arrays and files, or a refusal."""

import base64
import io
import json
import os
import struct
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inference import query, run_infer
from jobs import ROOT
from PIL import Image
from servers import free_port, serving

from schemas.config import InferConfig


@pytest.fixture(scope="module")
def served(trained) -> Any:
    import mlflow

    mlflow.set_tracking_uri(trained.tracking_uri)
    return mlflow.pyfunc.load_model(trained.model)


def _file(image: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, kind, **options)
    return data.getvalue()


def test_the_masks_are_those_of_the_tables(trained, served, scenes: Path, tmp_path: Path) -> None:
    """At the images' own size, whatever the form in which they are sent."""
    precise = InferConfig(engine="tensorflow", precision="float32")
    output = run_infer(trained, tmp_path, precise, source=scenes)
    rows = query(output, "FROM masks SELECT source_uri, mask.bytes ORDER BY image_id LIMIT 3")
    files = [Path(uri).read_bytes() for uri, _ in rows]
    expected = np.stack([np.asarray(Image.open(io.BytesIO(mask))) for _, mask in rows])
    assert expected.shape == (3, 120, 160)
    images = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
    encoded = [base64.b64encode(file).decode() for file in files]
    given: list[Any] = [images, images.astype(np.int64), images.astype(np.float32), files, encoded]
    given += [np.array(encoded), [f"data:image/png;base64,{one}" for one in encoded]]
    given += [{"image": encoded}, {"image": images}]
    for one in given:
        found = served.predict(one)
        assert found.dtype == np.uint8
        assert np.array_equal(found, expected)
    assert np.array_equal(served.predict(encoded[0]), expected[:1])


def test_a_photo_is_turned_as_a_viewer_shows_it(served) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert served.predict([_file(image, "JPEG", exif=exif)]).shape == (1, 60, 40)


def _png(size: tuple[int, int], depth: int, rows: bytes, interlaced: int = 0) -> bytes:
    """An RGB PNG that Pillow cannot write; each row begins with its filter, 0."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, 2, 0, 0, interlaced))
    content = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + content + chunk(b"IEND", b"")


def test_interlaced_files_are_whole(served) -> None:
    pixel = b"\x32\x64\x96"
    # The passes of 2x2 pixels have 1, 1 and 2 of them.
    file = _png((2, 2), 8, b"\0" + pixel + b"\0" + pixel + b"\0" + 2 * pixel, interlaced=1)
    plain = _file(np.full((2, 2, 3), list(pixel), np.uint8))
    assert np.array_equal(served.predict([file]), served.predict([plain]))


def _animation() -> bytes:
    second = Image.new("RGB", (4, 4), "white")
    return _file(np.zeros((4, 4, 3), np.uint8), save_all=True, append_images=[second])


IMAGE = np.full((1, 30, 50, 3), 200, np.uint8)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (IMAGE / 255, "found float64 from 0.78.*multiply shares from 0 to 1 by 255"),
        (np.zeros((1, 30, 50, 3)), "multiply shares from 0 to 1 by 255"),
        (IMAGE + 0.5, "expected whole numbers from 0 to 255, found float64 from 200.5"),
        (IMAGE * np.nan, "expected whole numbers"),
        (IMAGE.astype(int) * 2, "found int64 from 400 to 400"),
        (IMAGE.astype(int) - 201, "found int64 from -1 to -1"),
        (IMAGE > 0, "expected numbers from 0 to 255, found bool"),
        (IMAGE[0], r"expected RGB images \(batch, height, width, 3\), found \(30, 50, 3\)"),
        (IMAGE[..., :1], r"found \(1, 30, 50, 1\)"),
        (IMAGE[:0], r"found \(0, 30, 50, 3\)"),
        ([IMAGE[0], IMAGE[0, :20]], "expected images of one size"),
        ([_file(IMAGE[0]), None], "a PNG or JPEG for each image, found 'None'"),
        ([None, _file(IMAGE[0])], "a PNG or JPEG for each image, found 'None'"),
        ([[_file(IMAGE[0])], [float("nan")]], "a PNG or JPEG for each image, found"),
        (["no base64"], "expected a PNG or JPEG, as bytes or in base64"),
        ([base64.b64encode(b"no image").decode()], "expected a PNG or JPEG"),
        ([_file(IMAGE[0])[:-40]], "expected a PNG or JPEG"),
        ([_file(np.dstack([IMAGE[0], IMAGE[0, ..., :1]]))], "expected an opaque image"),
        ([_file(np.zeros((4, 4), np.uint16))], "expected 8 bits a channel"),
        ([_png((1, 1), 16, b"\0" + 6 * b"\7")], "expected 8 bits a channel"),
        ([_png((3, 2), 8, b"\0" + 9 * b"\7")], "expected 20 bytes of pixels, found 10"),
        ([_png((2, 2), 8, b"\0" + 3 * b"\7", 1)], "expected 15 bytes of pixels, found 4"),
        ([_animation()], "expected a still image"),
        ([_file(IMAGE[0]), _file(IMAGE[0, :20])], "expected images of one size"),
        ({"picture": IMAGE}, "expected a column named image, found .'picture'"),
    ],
)
def test_ambiguous_or_invalid_input_is_refused(served, given: Any, said: str) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=said):
        served.predict(given)


def test_make_serve_answers_arrays_and_files(trained, tmp_path: Path) -> None:
    """Without the environment's programs on PATH."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    image = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)

    def post(inputs: Any) -> Any:
        body = json.dumps({"inputs": inputs}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{address}/invocations", body, headers)
        with urllib.request.urlopen(request) as answer:
            return np.array(json.load(answer)["predictions"])

    command = ["make", "-C", str(ROOT), "serve", f"PORT={port}", f"MODEL={trained.model}"]
    kept = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    environment = {**kept, "MLFLOW_TRACKING_URI": trained.tracking_uri, "PATH": "/usr/bin:/bin"}
    with serving(command, f"{address}/ping", tmp_path / "serve.log", environment):
        found = post([image.tolist()])
        assert found.shape == (1, 600, 800)
        assert 0 <= found.min() <= found.max() < 13
        encoded = base64.b64encode(_file(image)).decode()
        assert np.array_equal(post([encoded]), found)
        assert np.array_equal(post({"image": [encoded]}), found)
        with pytest.raises(urllib.error.HTTPError) as refused:
            post([(image / 255).tolist()])
        assert refused.value.code == 400
        assert "multiply shares from 0 to 1 by 255" in refused.value.read().decode()
