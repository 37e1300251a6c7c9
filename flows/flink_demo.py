"""Runs both jobs on a Flink cluster of this machine and with the local runner: ``make flink-demo``.

Starts a cluster with two TaskManagers, runs ingest and infer on it and with the local runner,
compares every published file, and stops the cluster.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from flows.demo import require_local
from flows.flink import cluster as flink
from flows.scenes import write_scenes
from runtime import storage
from runtime.command_line import Parser, run_main
from runtime.errors import UserError
from runtime.imports import import_tensorflow

ROOT = "outputs/flink-demo"
_RUNNERS = ("local", "flink")


def main(arguments: Sequence[str]) -> str:
    """The command line; returns the summary to print at the end."""
    parser = Parser(prog="python -m flows.flink_demo", description=__doc__)
    parser.add_argument(
        "--raw", help="folder, archive or URI of your images; default: scenes that it draws"
    )
    parser.add_argument("--output", default=ROOT, help="root of all outputs, made anew")
    parser.add_argument("--scenes", type=int, default=160, help="synthetic scenes to draw")
    args = parser.parse_args(arguments)
    raw = None if args.raw is None else storage.absolute(args.raw)
    if raw is not None:
        storage.require_folder(raw, "RAW")
    require_local(args.output)
    output = Path(args.output).absolute()
    raw = raw or write_scenes(str(output / "raw"), args.scenes)
    for runner in _RUNNERS:
        shutil.rmtree(output / runner, ignore_errors=True)
    model = _untrained_model(output / "model")
    cluster = output / "cluster"
    try:
        print(flink.up(cluster), file=sys.stderr, flush=True)
        rows = _compare_runners(raw, model, output, flink.master(cluster))
        dashboard = f"http://{flink.master(cluster)}"
    finally:
        print(flink.down(cluster), file=sys.stderr, flush=True)
    return "\n".join([*rows, f"the dashboard was at {dashboard}; logs are in {cluster / 'logs'}"])


def _compare_runners(raw: str, model: Path, output: Path, master: str) -> list[str]:
    """Runs both jobs with both runners; returns one line for each job.

    Raises:
        UserError: the published files differ.
    """
    rows = []
    for job, options in (
        ("ingest", [f"--source={raw}"]),
        ("infer", [f"--model={model}", f"--source={raw}"]),
    ):
        seconds = {}
        for runner in _RUNNERS:
            arguments = [*options, f"--output={output / runner / job}"]
            if runner == "flink":
                arguments += ["--runner=FlinkRunner", f"--flink_master={master}"]
            print(f"{job}, {runner}:", file=sys.stderr, flush=True)
            started = time.monotonic()
            _run(job, arguments)
            seconds[runner] = time.monotonic() - started
        local, other = (published_digests(output / runner / job) for runner in _RUNNERS)
        if local != other:
            names = sorted(name for name in local | other if local.get(name) != other.get(name))
            raise UserError(f"{job}: these files differ: {', '.join(names)}")
        times = ", ".join(f"{runner} {seconds[runner]:.1f} s" for runner in _RUNNERS)
        rows.append(f"{job:<7} {len(local)} files, the same to the byte; {times}")
    return rows


def published_digests(root: Path) -> dict[str, str]:
    """SHA-256 by path of all files below ``root``, except the table ``runs``, which holds times."""
    return {
        str(path.relative_to(root)): storage.file_sha256(path)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] != "runs"
    }


def _run(job: str, arguments: Sequence[str]) -> None:
    command = [sys.executable, "-m", f"beam.{job}", *arguments]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command[1:])} ended with code {done.returncode}")


def _untrained_model(folder: Path) -> Path:
    """Writes an untrained network, which is enough to compare the runners; returns its path."""
    path = folder / "untrained.keras"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        import_tensorflow()
        import keras

        from model.export import export_openvino
        from model.unet import unet

        keras.utils.set_random_seed(0)
        unet(13, filters=8).save(path)
        export_openvino(path, folder / "openvino")
    return path


if __name__ == "__main__":
    sys.exit(run_main(main))
