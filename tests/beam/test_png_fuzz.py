"""Mutated PNGs: each is read with the same pixels as in Pillow, or rejected with a reason."""

import io
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from mutants import MUTATIONS, chunks_of, join, mutants
from PIL import Image

from beam import png
from flows.scenes import draw_scene
from schemas.classes import load_taxonomy
from schemas.errors import RejectError

MUTANTS = 2_400
LIMIT = 1_000_000


def _pillow(data: bytes) -> Image.Image | None:
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        image.load()
    except Exception:  # noqa: BLE001 - Pillow raises many types
        return None
    return image


def _with_right_adler(data: bytes) -> bytes:
    """The file with a correct zlib checksum, if nothing else is wrong with its pixels."""
    chunks = chunks_of(data)
    stream = b"".join(body for kind, body in chunks if kind == b"IDAT")
    lines = zlib.decompressobj(-15).decompress(stream[2:])
    first = next(i for i, (kind, _) in enumerate(chunks) if kind == b"IDAT")
    others = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
    return join([*others[:first], (b"IDAT", zlib.compress(lines)), *others[first:]])


def _values(image: Image.Image, data: bytes) -> np.ndarray:
    """Class values as Pillow reads them: index, grey value in the file, or red."""
    if image.mode == "P":
        return np.asarray(image)
    if data[25] == 0:
        return np.asarray(image.convert("L")) // (255 // (2 ** data[24] - 1))
    return np.asarray(image.convert("RGB"))[..., 0]


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_each_mutant_is_read_as_pillow_reads_it_or_rejected(capsys) -> None:
    taxonomy = load_taxonomy("carla-0.8")
    outcomes: Counter[str] = Counter()
    reasons: list[str] = []
    for name, data in mutants(MUTANTS):
        try:
            image = png.decode_image(data, LIMIT)
        except RejectError as error:
            reasons.append(error.message)
            outcomes[f"{name}: {error.code}"] += 1
        else:
            theirs = _pillow(data) or _pillow(_with_right_adler(data))
            assert theirs is not None, "read what Pillow refuses for more than zlib's checksum"
            assert image.dtype == np.uint8
            assert image.shape == (theirs.height, theirs.width, 3)
            assert np.array_equal(image, np.asarray(theirs.convert("RGB")))
            outcomes[f"{name}: read"] += 1
        try:
            mask = png.check_mask(png.decode_mask(data, LIMIT), taxonomy)
        except RejectError as error:
            reasons.append(error.message)
        else:
            theirs = _pillow(data) or _pillow(_with_right_adler(data))
            assert theirs is not None
            assert np.array_equal(mask, _values(theirs, data))
    assert all(reasons)
    assert sum(outcomes.values()) == MUTANTS
    assert {name.split(": ")[0] for name in outcomes} == {m.__name__ for m in MUTATIONS}
    with capsys.disabled():
        read = sum(count for name, count in outcomes.items() if name.endswith("read"))
        print(f"\n{MUTANTS} mutants, {read} read, the others rejected:")
        for name, count in sorted(outcomes.items()):
            print(f"  {name} {count}")


def test_a_job_over_mutants_ends_with_a_reason_for_each(tmp_path: Path) -> None:
    import pyarrow.parquet as pq
    from jobs import IN_MEMORY, SMALL

    from beam import ingest
    from beam.pipeline import pipeline_options
    from schemas.manifest import load_manifest

    image, mask = (png.encode(pixels) for pixels in draw_scene(3, 48, 36))
    for folder in ("CameraRGB", "CameraSeg"):
        (tmp_path / "raw" / folder).mkdir(parents=True)
    for index, (_, data) in enumerate(mutants(300)):
        damaged, whole = ("CameraRGB", "CameraSeg") if index % 2 else ("CameraSeg", "CameraRGB")
        (tmp_path / "raw" / damaged / f"{index:04d}.png").write_bytes(data)
        (tmp_path / "raw" / whole / f"{index:04d}.png").write_bytes(
            mask if whole == "CameraSeg" else image
        )
    config = SMALL.model_copy(update={"max_reject_fraction": 1.0})
    folder = Path(
        ingest.run(
            str(tmp_path / "raw"), str(tmp_path / "out"), config, pipeline_options(IN_MEMORY)
        )
    )
    manifest = load_manifest(folder)
    rejects = pq.read_table(folder / "rejects.parquet")
    assert manifest.records + rejects.num_rows == 300
    assert manifest.records > 10
    assert all(rejects["message"].to_pylist())
    assert sum(manifest.rejects.values()) == rejects.num_rows
