"""Peer of ingest: a bare loop in plain processes that decodes, resizes and encodes.

Calls the job's decoder and encoder directly; nothing is checked, hashed or counted.
"""

import io
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from kornia_rs.io import decode_image_png_u8
from PIL import Image

from schemas.example import Example, encode, write_record


def small_png(pixels) -> bytes:
    """The pixels as a PNG of 96x128."""
    buffer = io.BytesIO()
    small = Image.fromarray(pixels).resize((128, 96), Image.Resampling.NEAREST)
    small.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def convert(image_path: Path) -> bytes:
    """Converts one pair to one record."""
    mask_path = image_path.parents[1] / "CameraSeg" / image_path.name
    image = decode_image_png_u8(image_path.read_bytes(), (600, 800), "rgb")
    mask = decode_image_png_u8(mask_path.read_bytes(), (600, 800), "rgb")
    return encode(
        Example(
            image=small_png(image),
            mask=small_png(mask[..., 0]),
            id=image_path.stem,
            source_height=600,
            source_width=800,
            source_sha256="",
        )
    )


def main(source: str, output: str, workers: str) -> None:
    paths = sorted(Path(source, "CameraRGB").iterdir())
    Path(output).mkdir(parents=True)
    with ProcessPoolExecutor(int(workers)) as pool, Path(output, "records").open("wb") as file:
        for record in pool.map(convert, paths, chunksize=16):
            write_record(file, record)


if __name__ == "__main__":
    main(*sys.argv[1:])
