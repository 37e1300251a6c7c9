"""Peer of infer: a bare loop in plain processes that decodes, batches and predicts.

Calls the job's decoder, resize and engine directly; computes no statistics and writes nothing.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from inputs import network_size

from beam.infer.engines.choice import choose_runtime, load_engine
from beam.infer.model_uri import resolve_model
from beam.runners.malloc import tune_malloc
from images import png
from images.resize import resize_image
from schemas.config import InferConfig
from schemas.example import parse, read_records

LIMIT = 1 << 31


def images(path: Path):
    """The PNG bytes of an image file, or of all records of a shard."""
    if path.suffix == ".png":
        yield path.read_bytes()
    else:
        with path.open("rb") as file:
            for record in read_records(file, path.name):
                yield parse(record).image


def predict(paths: list[Path], model_file: str, workers: int) -> int:
    """Predicts the images of some files; returns the number of images."""
    tune_malloc()
    height, width = network_size()
    config = InferConfig(height=height, width=width)
    model = resolve_model(model_file, config, "")
    runtime = choose_runtime(config, workers)
    engine = load_engine(model, runtime)
    batch, count = [], 0
    for path in paths:
        for data in images(path):
            pixels = png.decode_image(data, LIMIT)
            batch.append(resize_image(pixels, model.height, model.width, model.resize))
            if len(batch) == runtime.batch_size:
                engine.predict(np.stack(batch))
                count += len(batch)
                batch = []
    if batch:
        engine.predict(np.stack(batch))
    return count + len(batch)


def main(source: str, _output: str, model: str, workers: str) -> None:
    pngs = sorted(Path(source).glob("CameraRGB/*.png"))
    files = pngs or sorted(Path(source).glob("*.tfrecord-*"))
    count = int(workers)
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(predict, files[i::count], model, count) for i in range(count)]
        print(sum(job.result() for job in jobs))


if __name__ == "__main__":
    main(*sys.argv[1:])
