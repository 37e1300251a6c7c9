"""Bare loop: decode, nearest resize, encode on all cores in plain processes. Checks nothing."""

import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from kornia_rs.io import decode_image_png_u8

from beam import png
from schemas.example import Example, encode, write_record


def convert(image_path: Path) -> bytes:
    """One pair to one record, with the decoder and the encoder of the job."""
    mask_path = image_path.parents[1] / "CameraSeg" / image_path.name
    image = decode_image_png_u8(image_path.read_bytes(), (600, 800), "rgb")
    mask = decode_image_png_u8(mask_path.read_bytes(), (600, 800), "rgb")[..., 0]
    return encode(
        Example(
            image=png.encode(png.resize_nearest(image, 96, 128)),
            mask=png.encode(png.resize_nearest(mask, 96, 128)),
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
