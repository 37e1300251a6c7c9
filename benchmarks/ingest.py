"""Times the ingest job against its peers: ``make bench BENCH=ingest``.

Runs whole processes on the same files with the same number of workers, in turns; computes the ratio
within each round and prints medians. ``RAW=folder`` names the pairs to repeat.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from inputs import REPEATED, repeated_pairs

HERE = Path(__file__).parent
WORKERS = 2


@dataclass(frozen=True)
class Run:
    """One run: wall seconds, and the peak memory of its largest process in MiB."""

    seconds: float
    peak_mib: float


def command(contender: str, source: Path, output: Path) -> list[str]:
    """The contender's command line; it writes below an output folder that does not exist yet."""
    if contender == "ingest":
        options = ["--direct_running_mode=multi_processing", f"--direct_num_workers={WORKERS}"]
        arguments = [f"--source={source}", f"--output={output}", *REPEATED, *options]
        return [sys.executable, "-m", "beam.ingest", *arguments]
    script = HERE / f"peer_{contender}.py"
    return [sys.executable, str(script), str(source), str(output), str(WORKERS)]


def measure(contender: str, source: Path, scratch: Path) -> Run:
    """Runs one contender once, to completion."""
    with tempfile.TemporaryDirectory(dir=scratch) as output, (scratch / "log").open("w") as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            command(contender, source, Path(output, "out")),
            cwd=HERE.parent,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(HERE), "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{contender} failed:\n{(scratch / 'log').read_text()[-3000:]}")
    return Run(seconds, usage.ru_maxrss / 1024)


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
                {one: measure(one, source, scratch) for one in args.contenders}
                for _ in range(args.rounds)
            ]
            for one in args.contenders:
                medians[one, count] = statistics.median(r[one].seconds for r in rounds)
                ratio = statistics.median(r[one].seconds / r["ingest"].seconds for r in rounds)
                peak = max(r[one].peak_mib for r in rounds)
                row = f"{medians[one, count]:.1f} | {ratio:.2f} | {peak:.0f}"
                print(f"| {count} | {one} | {row} |", flush=True)
    if len(args.counts) > 1:
        low, high = min(args.counts), max(args.counts)
        print("\nOnce started (pairs a second between the smallest and the largest count):")
        for one in args.contenders:
            rate = (high - low) / (medians[one, high] - medians[one, low])
            print(f"  {one}: {rate:.0f}")


if __name__ == "__main__":
    main()
