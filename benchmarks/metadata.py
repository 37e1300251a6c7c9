"""Measures how the last step of an ingest grows with pairs: ``make bench BENCH=metadata``.

The step writes the tables beside the shards and the manifest, in one process. It runs alone, on
made-up rows of ``--counts`` pairs in shards of 5,000. Its seconds per million pairs and its memory
should not depend on the number of pairs.
"""

import argparse
import multiprocessing
import re
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from beam.ingest.metadata import write_metadata
from beam.ingest.records import recipe_of
from beam.ingest.reject_files import RejectFile
from images import png
from schemas.config import IngestConfig
from schemas.example import Example, encode, write_record
from schemas.layout import shard_name
from schemas.manifest import ShardInfo
from schemas.prediction import REJECTS
from schemas.sources import SourceRow, source_table
from schemas.stats import PixelStats

SHARD = 5_000
CLASSES = 13
PIXELS = np.zeros((48, 64, 3), np.uint8)


def rows(index: int, name: str, count: int) -> list[SourceRow]:
    """The rows of a shard; hashes are random, as they are in practice."""
    random = np.random.default_rng(index)
    hashes = random.bytes(96 * count).hex()
    return [
        SourceRow(
            id=f"drive_{index:05}/{at:06}",
            image_path=f"drive_{index:05}/CameraRGB/{at:06}.png",
            mask_path=f"drive_{index:05}/CameraSeg/{at:06}.png",
            image_size=460_000 + at,
            mask_size=9_000 + at,
            image_modified=1.7e9 + at,
            mask_modified=1.7e9 + at,
            image_sha256=digits[:64],
            mask_sha256=digits[64:128],
            split="train",
            group=f"drive_{index:05}/{at // 10}",
            shard=name,
            offset=at * 60_000,
            length=60_000,
            classes="1,2,6,7,8,9,10",
            source_height=600,
            source_width=800,
            dhash=digits[128:144],
            picture=digits[144:176],
            doubts="",
            cells=40,
            agreeing=31,
            blue_tilt=0.1,
        )
        for at in range(count)
        for digits in [hashes[192 * at : 192 * (at + 1)]]
    ]


def make_input(folder: Path, pairs: int) -> list[ShardInfo]:
    """Writes the rows of each shard, and records of the first one for the data card."""
    shards, count = [], -(-pairs // SHARD)
    stats = PixelStats.of(PIXELS, PIXELS[..., 0], CLASSES).to_json()
    for index in range(count):
        name = shard_name("lyft", "train", index, count)
        records = min(SHARD, pairs - index * SHARD)
        pq.write_table(source_table(rows(index, name, records)), folder / f"{name}.parquet")
        digest = f"{index:064x}"
        shards.append(
            ShardInfo(
                name=name,
                split="train",
                records=records,
                bytes=records * 60_000,
                sha256=digest,
                source_sha256=digest,
                stats=stats,
            )
        )
    image, mask = png.encode(PIXELS), png.encode(PIXELS[..., 0])
    with (folder / shards[0].name).open("wb") as file:
        for at in range(16):
            write_record(file, encode(Example(image, mask, str(at), 600, 800, "")))
    for name, table in (("sources", source_table([])), ("rejects", REJECTS.empty_table())):
        pq.write_table(table, folder / f"{name}.parquet")
    return shards


def step(folder: Path, shards: list[ShardInfo], pairs: int) -> None:
    """Runs the step in a new process and prints its seconds and MiB."""
    staged = folder / "dataset"
    staged.mkdir()
    shutil.move(folder / shards[0].name, staged)
    recipe = recipe_of("/raw", IngestConfig())
    nothing = RejectFile(str(folder / "sources.parquet"), str(folder / "rejects.parquet"), 0, 0, {})
    before = peak_mib()
    started = time.perf_counter()
    groups, files = {"train": pairs // 10}, {"": 2 * pairs}
    write_metadata(str(staged), recipe, "", str(folder), shards, [nothing], [], groups, files, [])
    seconds = time.perf_counter() - started
    size = (staged / "sources.parquet").stat().st_size
    print(
        f"| {pairs:,} | {seconds:.1f} | {seconds / pairs * 1e6:.1f} | {before:.0f} | "
        f"{peak_mib():.0f} | {size / 2**20:.0f} |",
        flush=True,
    )


def peak_mib() -> float:
    """Peak memory of this process; getrusage would include its parent's."""
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(kilobytes) / 1024


def main() -> None:
    """The command line; prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    args = parser.parse_args()
    print("| pairs | seconds | per million | MiB before | MiB at most | MiB of sources.parquet |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    context = multiprocessing.get_context("spawn")
    for pairs in args.counts:
        with tempfile.TemporaryDirectory() as scratch:
            shards = make_input(Path(scratch), pairs)
            process = context.Process(target=step, args=(Path(scratch), shards, pairs))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()
