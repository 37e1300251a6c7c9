"""Times the ingest job against its peers: ``make bench BENCH=ingest``.

Runs whole processes on the same files with the same number of workers, in turns; computes the ratio
within each round and prints medians. ``RAW=folder`` names the pairs to repeat.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from inputs import REPEATED, repeated_pairs
from measuring import HERE, Measurement, measure

WORKERS = 2


def command(contender: str, source: Path, output: Path) -> list[str]:
    """The contender's command line; it writes below an output folder that does not exist yet."""
    if contender == "ingest":
        options = ["--direct_running_mode=multi_processing", f"--direct_num_workers={WORKERS}"]
        arguments = [f"--source={source}", f"--output={output}", *REPEATED, *options]
        return [sys.executable, "-m", "beam.ingest", *arguments]
    script = HERE / f"peer_{contender}.py"
    return [sys.executable, str(script), str(source), str(output), str(WORKERS)]


def run(contender: str, source: Path, scratch: Path) -> Measurement:
    """Runs one contender once."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        return measure(command(contender, source, Path(folder, "out")), scratch / "log")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[500, 2500])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contenders", nargs="+", default=["ingest", "tfds", "bare"])
    args = parser.parse_args()
    medians: dict[tuple[str, int], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        print("| pairs | job | median s | ingest is faster by | peak MiB |")
        print("| ---: | --- | ---: | ---: | ---: |", flush=True)
        for count in args.counts:
            source = repeated_pairs(args.raw, scratch, count)
            rounds = [
                {job: run(job, source, scratch) for job in args.contenders}
                for _ in range(args.rounds)
            ]
            for job in args.contenders:
                medians[job, count] = statistics.median(r[job].seconds for r in rounds)
                ratio = statistics.median(r[job].seconds / r["ingest"].seconds for r in rounds)
                peak = max(r[job].peak_mib for r in rounds)
                row = f"{medians[job, count]:.1f} | {ratio:.2f} | {peak:.0f}"
                print(f"| {count} | {job} | {row} |", flush=True)
    if len(args.counts) > 1:
        low, high = min(args.counts), max(args.counts)
        print("\nWithout start-up, pairs/s between the smallest and the largest count:")
        for job in args.contenders:
            rate = (high - low) / (medians[job, high] - medians[job, low])
            print(f"  {job}: {rate:.0f}")


if __name__ == "__main__":
    main()
