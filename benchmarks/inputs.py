"""Any number of raw pairs for benchmarks, made by repeating a few."""

import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from flows.scenes import write_scenes

_HEADER_END = 33
"""Bytes of a PNG's signature and header chunk."""

REPEATED = (
    *("--max_doubtful_fraction=1", "--max_leak=1"),
    *("--height=96", "--width=128", "--resize=nearest"),
)
"""Options of ingest for repeated pairs, all of which are near-duplicates and so doubtful and leaks;
at the notebooks' size, to which all peers resize."""


def network_size() -> tuple[int, int]:
    """Height and width at which the inference jobs predict, from the environment variable SIZE."""
    height, _, width = os.environ.get("SIZE", "96x128").partition("x")
    return int(height), int(width)


def repeated_pairs(
    raw: Path | None, folder: Path, count: int, size: tuple[int, int] | None = None
) -> Path:
    """Writes ``count`` pairs in Lyft's layout below ``folder``; returns their folder.

    Repeats the pairs of ``raw``, or synthetic scenes if it is None. A tEXt chunk makes the bytes of
    each copy different. ``size`` (width, height) resizes the pairs before they are repeated.
    """
    if raw is None:
        raw = folder / "scenes"
        write_scenes(str(raw), 100)
    images = sorted(raw.rglob("CameraRGB/*.png"))[:count]
    if not images:
        raise SystemExit(f"error: {raw}: expected CameraRGB/*.png at any depth, found none")
    if size:
        images = [
            _resized(image, folder / "resized" / image.relative_to(raw), size) for image in images
        ]
    target = folder / f"pairs-{count}"
    if target.exists():
        shutil.rmtree(target)
    for name in ("CameraRGB", "CameraSeg"):
        (target / name).mkdir(parents=True)
    for index in range(count):
        copy, position = divmod(index, len(images))
        image = images[position]
        for source in (image, image.parents[1] / "CameraSeg" / image.name):
            data = source.read_bytes()
            marked = data[:_HEADER_END] + _text_chunk(f"copy {copy}") + data[_HEADER_END:]
            name = f"{copy:03d}{image.parents[1].name}_{image.name}"
            (target / source.parent.name / name).write_bytes(marked)
    return target


def tiny_pairs(folder: Path, count: int) -> Path:
    """Writes ``count`` different pairs of 32x32 in drives of 1,000; returns their folder."""
    random = np.random.default_rng(0)
    target = folder / f"tiny-{count}"
    for index in range(count):
        drive = target / f"drive_{index // 1000:05d}"
        if index % 1000 == 0:
            for name in ("CameraRGB", "CameraSeg"):
                (drive / name).mkdir(parents=True)
        cells = random.integers(0, 256, (8, 8, 3), np.uint8)
        image = np.kron(cells, np.ones((4, 4, 1), np.uint8))
        ids = np.zeros((32, 32, 3), np.uint8)
        ids[..., 0] = np.kron(cells[..., 0] % 13, np.ones((4, 4), np.uint8))
        for name, pixels in (("CameraRGB", image), ("CameraSeg", ids)):
            path = drive / name / f"{index:08d}.png"
            Image.fromarray(pixels).save(path, compress_level=1)
    return target


def _resized(image: Path, target: Path, size: tuple[int, int]) -> Path:
    """Writes a pair in another size: the image by bilinear interpolation, class ids as they are."""
    for name, resampling in (
        ("CameraRGB", Image.Resampling.BILINEAR),
        ("CameraSeg", Image.Resampling.NEAREST),
    ):
        path = target.parents[1] / name / target.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(image.parents[1] / name / image.name) as source:
            source.resize(size, resampling).save(path)
    return target


def _text_chunk(text: str) -> bytes:
    body = b"tEXt" + b"Comment\0" + text.encode()
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
