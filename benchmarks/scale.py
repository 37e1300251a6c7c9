"""Measures how both jobs scale with images and workers: ``make bench BENCH=scale``.

Runs whole processes, one after the other, over ``--counts`` pairs with 1 and 2 workers; CPU time
covers all processes of a job. Listing is measured separately. ``RAW=folder`` names the pairs to
repeat and ``MODEL=file.keras`` the network, by default the U-Net of 16 filters with random weights.
``--size 1600x1200`` resizes the pairs first, to measure how the cost grows with their pixels;
``--tiny`` makes pairs up of 32x32, to measure what does not depend on pixels.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from inputs import REPEATED, repeated_pairs, tiny_pairs
from measuring import HERE, measure

from beam.shared.source import RawSource
from beam.shared.source_digest import digest_source
from schemas.raw_layout import load_layout


def make_model(path: Path) -> Path:
    """Writes the default network, with random weights and its OpenVINO graph beside it."""
    code = (
        "import sys; from pathlib import Path; from model.export import export_openvino;"
        "from model.unet import unet; path = Path(sys.argv[1]);"
        "unet(13, filters=16, normalisation='batch').save(path);"
        "export_openvino(path, path.parent / 'openvino')"
    )
    command = [sys.executable, "-c", code, str(path)]
    subprocess.run(command, cwd=HERE.parent, check=True, stderr=subprocess.DEVNULL)
    return path


def size_from(text: str) -> tuple[int, int]:
    """Width and height from ``WIDTHxHEIGHT``."""
    width, height = (int(part) for part in text.split("x"))
    if min(width, height) < 1:
        raise ValueError
    return width, height


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[500, 2500, 10_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--size", type=size_from, metavar="WIDTHxHEIGHT")
    parser.add_argument("--jobs", nargs="+", default=["ingest", "infer"])
    parser.add_argument(
        "--tiny", action="store_true", help="made-up pairs of 32x32 in place of RAW"
    )
    args = parser.parse_args()
    print("| pairs | job | workers | seconds | CPU seconds | images/s | peak MiB | KiB an image |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        model = args.model
        if "infer" in args.jobs and not model:
            model = make_model(Path(folder, "unet.keras"))
        for count in args.counts:
            with tempfile.TemporaryDirectory(dir=folder) as place:
                scratch = Path(place)
                if args.tiny:
                    source = tiny_pairs(scratch, count)
                else:
                    source = repeated_pairs(args.raw, scratch, count, args.size)
                started = time.perf_counter()
                digest_source(RawSource(str(source), load_layout("lyft")))
                listing = time.perf_counter() - started
                read = size_of(source) / count / 1024
                print(f"| {count} | list | | {listing:.2f} | | | | {read:.1f} read |", flush=True)
                jobs = {
                    "ingest": [f"--source={source}", *REPEATED],
                    "infer": [f"--model={model}", f"--source={source}/CameraRGB"],
                }
                for job in args.jobs:
                    command = [sys.executable, "-m", f"beam.{job}", *jobs[job]]
                    for workers in args.workers:
                        output = scratch / f"{job}-{workers}"
                        options = [f"--output={output}", f"--direct_num_workers={workers}"]
                        run = measure([*command, *options], scratch / "log")
                        written = size_of(output) / count / 1024
                        print(
                            f"| {count} | {job} | {workers} | {run.seconds:.1f} | {run.cpu:.1f} | "
                            f"{count / run.seconds:.0f} | {run.peak_mib:.0f} | {written:.1f} |",
                            flush=True,
                        )


if __name__ == "__main__":
    main()
