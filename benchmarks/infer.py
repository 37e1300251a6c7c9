"""Times the inference job against its peers: ``make bench BENCH=infer``.

Runs whole processes on the same files with the same number of workers, in turns; computes the ratio
within each round and prints medians. ``RAW=folder`` names the pairs to repeat and
``MODEL=file.keras`` the network, by default the U-Net of 32 filters with random weights.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from inputs import REPEATED, network_size, repeated_pairs
from measuring import HERE, measure

WORKERS = 2
CONTENDERS = ("infer", "infer-tensorflow", "stock", "tfdata", "bare")


@dataclass(frozen=True)
class Run:
    """Seconds to the end and to the first prediction, and peak MiB of the largest process."""

    seconds: float
    first: float | None
    peak_mib: float


def command(contender: str, source: Path, output: Path, model: Path) -> list[str]:
    """The contender's command line; it writes below an output folder that does not exist yet."""
    job, _, engine = contender.partition("-")
    if job == "infer":
        arguments = [f"--model={model}", f"--output={output}"]
        arguments += ["--direct_running_mode=multi_processing", f"--direct_num_workers={WORKERS}"]
        if (source / "manifest.json").exists():
            arguments.append(f"--dataset={source}")
        else:
            height, width = network_size()
            # Without the folder of masks, since the peers read no truth either.
            arguments.append(f"--source={source / 'CameraRGB'}")
            arguments += [f"--height={height}", f"--width={width}"]
        if engine:
            arguments.append(f"--engine={engine}")
        return [sys.executable, "-m", "beam.infer", *arguments]
    script = HERE / f"peer_infer_{contender}.py"
    return [sys.executable, str(script), str(source), str(output), str(model), str(WORKERS)]


def run(contender: str, source: Path, model: Path, scratch: Path) -> Run:
    """Runs one contender once."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        output = Path(folder, "out")
        first: list[float] = []
        ended = threading.Event()
        watcher = threading.Thread(target=_watch, args=(output, first, ended))
        watcher.start()
        try:
            measured = measure(command(contender, source, output, model), scratch / "log")
        finally:
            ended.set()
            watcher.join()
    return Run(measured.seconds, first[0] if first else None, measured.peak_mib)


def _watch(output: Path, first: list[float], ended: threading.Event) -> None:
    """Records after how many seconds the job's counters show a prediction."""
    started = time.perf_counter()
    while not ended.wait(0.02):
        for path in output.glob(".staging-*/progress/*.json"):
            try:
                has_predicted = "predicted" in path.read_text()
            except OSError:
                continue
            if has_predicted:
                first.append(time.perf_counter() - started)
                return


def make_model(folder: Path, given: str | None) -> Path:
    """Writes a ``.keras`` file with its OpenVINO graph beside it."""
    folder.mkdir()
    model = folder / "unet.keras"
    code = (
        "import shutil, sys; from pathlib import Path; from model.export import export_openvino;"
        "from model.unet import unet; path = Path(sys.argv[1]);"
        "shutil.copy(sys.argv[2], path) if sys.argv[2] else unet(13).save(path);"
        "export_openvino(path, path.parent / 'openvino')"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(model), given or ""],
        cwd=HERE.parent,
        check=True,
        stderr=subprocess.DEVNULL,
    )
    return model


def make_dataset(pairs: Path, folder: Path) -> Path:
    """Ingests the pairs; returns the dataset's folder."""
    done = subprocess.run(
        [sys.executable, "-m", "beam.ingest", f"--source={pairs}", f"--output={folder}", *REPEATED],
        cwd=HERE.parent,
        check=True,
        capture_output=True,
        text=True,
    )
    return Path(done.stdout.strip())


def compare(sources: dict[int, Path], contenders: list[str], args, model: Path, scratch: Path):
    """Prints a row per count and contender, then rates and start-up times from the two extremes."""
    medians: dict[tuple[str, int], float] = {}
    print("| images | job | median s | times infer's | first prediction s | peak MiB |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |", flush=True)
    for count, source in sources.items():
        rounds = [
            {job: run(job, source, model, scratch) for job in contenders}
            for _ in range(args.rounds)
        ]
        for job in contenders:
            medians[job, count] = statistics.median(r[job].seconds for r in rounds)
            ratio = statistics.median(r[job].seconds / r["infer"].seconds for r in rounds)
            firsts = [first for r in rounds if (first := r[job].first) is not None]
            first = f"{statistics.median(firsts):.1f}" if firsts else ""
            peak = max(r[job].peak_mib for r in rounds)
            row = f"{medians[job, count]:.1f} | {ratio:.2f} | {first} | {peak:.0f}"
            print(f"| {count} | {job} | {row} |", flush=True)
    if len(sources) > 1:
        low, high = min(sources), max(sources)
        print("\nWithout start-up, between the smallest and the largest count:")
        for job in contenders:
            rate = (high - low) / (medians[job, high] - medians[job, low])
            start = medians[job, low] - low / rate
            print(f"  {job}: {rate:.1f} images/s, plus {start:.1f} s of start-up")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--counts", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contenders", nargs="+", default=CONTENDERS, choices=CONTENDERS)
    parser.add_argument("--size", default="96x128", help="height and width of the network's input")
    parser.add_argument("--inputs", nargs="+", default=["pngs", "records"])
    args = parser.parse_args()
    os.environ["SIZE"] = args.size
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        model = make_model(scratch / "model", args.model)
        pairs = {}
        for count in args.counts:
            (scratch / str(count)).mkdir()
            pairs[count] = repeated_pairs(args.raw, scratch / str(count), count)
        if "pngs" in args.inputs:
            print("PNGs of their own size:")
            compare(pairs, list(args.contenders), args, model, scratch)
        if "records" in args.inputs:
            print("\nTFRecords of 96x128, with truth:")
            datasets = {
                count: make_dataset(source, scratch / f"datasets-{count}")
                for count, source in pairs.items()
            }
            compare(datasets, list(args.contenders), args, model, scratch)


if __name__ == "__main__":
    main()
