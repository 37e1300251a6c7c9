"""Measures what inference costs for a row beside reading and predicting: ``make bench BENCH=rows``.

Runs the job in one process, on ``--counts`` made-up images that an inventory names: each is read
and predicted by a function that does nothing. A first run publishes the rows of all images; a
second one, with 1% more images, takes them over. ``--part_mib`` is small, so that few images fill
many parts: an image takes about 1 KiB. Prints CPU seconds, the peak of the process, and how often
files of rows were opened; ``MODEL=file.keras`` spares it making a network.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from metadata import peak_mib

from beam.infer import handler, pictures
from beam.infer import pipeline as infer
from beam.infer.pictures import Prediction
from beam.runners.run import pipeline_options
from images import png
from schemas.config import InferConfig

SIZE = 16
PIXELS = np.zeros((SIZE, SIZE, 3), np.uint8)
IDS = np.zeros((SIZE, SIZE), np.uint8)
CONFIDENCES = np.full((SIZE, SIZE), 0.5, np.float32)
ONE_WORKER = ["--direct_running_mode=in_memory", "--direct_num_workers=1"]


def replace_work() -> None:
    """Replaces reading and predicting; what an image's file holds is its path."""
    pictures._read_file = lambda file, *_: file.path.encode()  # noqa: SLF001
    png.read_image = lambda *_: PIXELS
    handler.UNetHandler.load_model = lambda _: None
    handler.predict = lambda batch, *_: [Prediction(one, IDS, CONFIDENCES) for one in batch]


def count_openings(opened: list[str]) -> None:
    """Notes the names of the Arrow and Parquet files that are opened for reading from now on."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    memory_map, parquet_file = pa.memory_map, pq.ParquetFile

    def map_file(path, *args):
        opened.append(str(path))
        return memory_map(path, *args)

    def open_parquet(place, *args, **options):
        opened.append(str(place))
        return parquet_file(place, *args, **options)

    pa.memory_map, pq.ParquetFile = map_file, open_parquet


def write_inventory(path: Path, count: int) -> None:
    """An inventory of PNGs in drives of 1,000."""
    names = (f"drive_{at // 1000:05d}/CameraRGB/{at:08d}.png,100\n" for at in range(count))
    path.write_text("path,size\n" + "".join(names))


def job(model: str, folder: Path, label: str, count: int, part_mib: float) -> None:
    """Runs the job in a new process, and prints a row of the table."""
    write_inventory(folder / "files.csv", count)
    replace_work()
    opened: list[str] = []
    count_openings(opened)
    config = InferConfig(
        height=SIZE, width=SIZE, part_mib=part_mib, inventory=str(folder / "files.csv")
    )
    source, output = str(folder / "source"), str(folder / "out")
    before = peak_mib()
    times, started = os.times(), time.perf_counter()
    infer.run(model, source, None, output, config, options=pipeline_options(ONE_WORKER))
    seconds = time.perf_counter() - started
    cpu = sum(os.times()[:2]) - sum(times[:2])
    parts = len(list(Path(output).glob("masks/**/*.parquet")))
    openings = sum("/.staging-" in place or "/source=" in place for place in opened)
    print(
        f"| {count:,} | {label} | {parts} | {seconds:.0f} | {cpu:.1f} | {cpu / count * 1e3:.2f} | "
        f"{before:.0f} | {peak_mib():.0f} | {openings:,} |",
        flush=True,
    )


def main() -> None:
    """The command line; prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--part_mib", type=float, default=4)
    args = parser.parse_args()
    print(
        "| images | run | parts | s | CPU s | ms an image | MiB before | MiB at most | openings |"
    )
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as place:
        model = args.model
        if model is None:
            from scale import make_model

            model = make_model(Path(place, "unet.keras"))
        for count in args.counts:
            with tempfile.TemporaryDirectory(dir=place) as scratch:
                Path(scratch, "source").mkdir()
                for label, images in (("first", count), ("1% more", count + count // 100)):
                    settings = (str(model), Path(scratch), label, images, args.part_mib)
                    process = context.Process(target=job, args=settings)
                    process.start()
                    process.join()
                    if process.exitcode:
                        raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()
