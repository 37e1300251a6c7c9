"""Times both jobs on Flink against the local runner: ``make bench BENCH=flink``.

Runs whole processes on the same files, in turns: FnApiRunner with 1 and 2 workers, and a cluster
on this machine with 1 and 2 TaskManagers of one busy slot each. CPU seconds cover all processes:
for Flink the job's driver, the JobManager, the TaskManagers and their Python workers.
``RAW=folder`` names the pairs to repeat and ``MODEL=file.keras`` the model; without a model, infer
is left out.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

import measuring
from inputs import REPEATED, repeated_pairs

from flows.flink import cluster as flink
from runtime.services import State

CONTENDERS = [(runner, workers) for runner in ("local", "flink") for workers in (1, 2)]
TICKS = os.sysconf("SC_CLK_TCK")


def cluster_cpu(root: Path) -> float:
    """CPU seconds of the cluster's processes and of their children that have ended."""
    total = 0
    groups = {service.pid for service in State.load(root).services.values()}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(") ")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) in groups:
            total += sum(int(value) for value in fields[11:15])
    return total / TICKS


def measure(job: str, arguments: list[str], cluster: Path | None, log: Path) -> tuple[float, float]:
    """Wall and CPU seconds of one run, to its end."""
    before = cluster_cpu(cluster) if cluster else 0.0
    run = measuring.measure([sys.executable, "-m", f"beam.{job}", *arguments], log)
    return run.seconds, run.cpu + (cluster_cpu(cluster) - before if cluster else 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[500, 2500])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        clusters = {}
        try:
            for count in (1, 2):
                clusters[count] = scratch / f"cluster-{count}"
                flink.up(clusters[count], task_managers=count)
            report(args, scratch, clusters)
        finally:
            for cluster in clusters.values():
                flink.down(cluster)


def report(args: argparse.Namespace, scratch: Path, clusters: dict[int, Path]) -> None:
    jobs = ["ingest", "infer"] if args.model else ["ingest"]
    few = repeated_pairs(args.raw, scratch, 20)
    for workers, cluster in clusters.items():
        # Warm-up: the JVM compiles its code during the first job.
        arguments = [f"--source={few}", f"--output={scratch / f'warm-{workers}'}"]
        arguments += ["--runner=FlinkRunner", f"--flink_master={flink.master(cluster)}"]
        measure("ingest", arguments, cluster, scratch / "log")
    print("| job | pairs | runner | workers | median s | CPU s | of the local runner's time |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: |", flush=True)
    for count in args.counts:
        source = repeated_pairs(args.raw, scratch, count)
        for job in jobs:
            found: dict[tuple[str, int], list[tuple[float, float]]] = {}
            for turn in range(args.rounds):
                for runner, workers in CONTENDERS:
                    output = scratch / f"{job}-{count}-{turn}-{runner}-{workers}"
                    arguments = [f"--source={source}", f"--output={output}"]
                    arguments += (
                        [f"--model={args.model.absolute()}"] if job == "infer" else list(REPEATED)
                    )
                    cluster = clusters[workers] if runner == "flink" else None
                    if cluster:
                        arguments += ["--runner=FlinkRunner", f"--parallelism={workers}"]
                        arguments += [f"--flink_master={flink.master(cluster)}"]
                    else:
                        arguments += [f"--direct_num_workers={workers}"]
                    found.setdefault((runner, workers), []).append(
                        measure(job, arguments, cluster, scratch / "log")
                    )
            for (runner, workers), runs in found.items():
                seconds, cpu = (statistics.median(column) for column in zip(*runs, strict=True))
                ratio = statistics.median(
                    mine[0] / local[0]
                    for mine, local in zip(runs, found["local", workers], strict=True)
                )
                row = f"{workers} | {seconds:.1f} | {cpu:.1f} | {ratio:.2f}"
                print(f"| {job} | {count} | {runner} | {row} |", flush=True)


if __name__ == "__main__":
    main()
