"""What a run of ingest-train-infer would do, before it does it: ``python -m flows.plan``.

Nothing is written. What is published is verified by its checksums, as the run itself would.
"""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.durations import ingest_key, recorded, train_key
from flows.table import table
from schemas.cli import run_main
from schemas.config import GateConfig, InferConfig, IngestConfig, TrainConfig
from schemas.errors import UserError
from schemas.layout import TRACKING_URI
from schemas.manifest import Manifest

RATES = "docs/operate.md"
"""Where the rates below stand, and which of them were measured: 2 cores, no GPU."""

_START_S = {"ingest": 4, "train": 30, "infer": 15}
_PAIRS_PER_S, _TRAINED_PER_S, _PREDICTED_PER_S = 208, 12.5, 66
_RECORD_BYTES_PER_PIXEL = 1.7
_ROW_BYTES = 1400
_PARAMETERS_AT_32 = 8_640_141
_TRAINED_PIXELS, _TRAINED_FILTERS = 96 * 128, 32
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Step:
    """One line of the plan.

    Attributes:
        action: ``runs``, ``cached`` or ``replaces``.
        written: bytes, an estimate.
        seconds: an estimate, after ``basis``.
    """

    name: str
    action: str
    reads: str
    writes: str
    written: float = 0
    seconds: float = 0
    basis: str = ""

    def row(self) -> tuple[str, ...]:
        """Cells of the printed table."""
        size = human(self.written) if self.written else ""
        time = f"about {duration(self.seconds)}" if self.seconds else ""
        return (self.name, self.action, self.reads, self.writes, size, time, self.basis)


def plan(
    source: str,
    output: str = "outputs",
    infer_source: str | None = None,
    tracking_uri: str = TRACKING_URI,
    train_on: str = "here",
    ingest_config: IngestConfig = IngestConfig(),
    train_config: TrainConfig = TrainConfig(),
    gate_config: GateConfig = GateConfig(),
    infer_config: InferConfig = InferConfig(),
) -> list[Step]:
    """The three steps; parameters are those of the flow.

    Raises:
        UserError: the source holds no pairs, or the run could not use its parameters.
    """
    first, dataset, pairs = plan_ingest(source, output, ingest_config)
    second, model = plan_train(
        dataset, pairs, output, train_config, gate_config, tracking_uri, ingest_config, train_on
    )
    third = plan_infer(model, dataset, infer_source, pairs, output, infer_config, tracking_uri)
    return [first, second, third]


def plan_ingest(source: str, output: str, config: IngestConfig) -> tuple[Step, Path | None, int]:
    """The step, the published version that it would take as it is, and the number of pairs."""
    from beam import pairing, storage
    from beam.records import Recipe
    from beam.versions import is_unchanged, published_versions, survey_pairs
    from schemas.classes import load_taxonomy

    recipe = Recipe(storage.absolute(source), config, load_taxonomy(config.taxonomy))
    storage.require_folder(recipe.source, "source")
    found = survey_pairs(recipe.source)
    files = (one for one in storage.walk(recipe.source) if pairing.is_png(one.path))
    size = sum(one.size for one in files)
    reads = f"{found.images:,} pairs, {human(size)}"
    root = Path(output).absolute() / "datasets" / config.name
    published = published_versions(root, recipe) if root.is_dir() else []
    for folder, manifest in published:
        if is_unchanged(folder, manifest, found.digest):
            step = Step("ingest", "cached", reads, f"nothing; {folder} is whole")
            return step, folder, manifest.records
    each = (
        _record_bytes(published[0][1])
        if published
        else (config.height * config.width * _RECORD_BYTES_PER_PIXEL or size / found.images)
    )
    seconds, basis = _estimate(
        output, ingest_key(config), found.images, _START_S["ingest"], _PAIRS_PER_S
    )
    where = f"a new version in {root}"
    if published:
        where += f", beside {len(published)}; shards that have not changed are taken over"
    written = found.images * each
    return Step("ingest", "runs", reads, where, written, seconds, basis), None, found.images


def plan_train(
    dataset: Path | None,
    pairs: int,
    output: str,
    config: TrainConfig,
    gate: GateConfig,
    tracking_uri: str,
    ingest_config: IngestConfig,
    train_on: str,
) -> tuple[Step, str | None]:
    """The step, and the version to predict with where it is known before."""
    height, width = ingest_config.height, ingest_config.width
    images = round(pairs * (1 - ingest_config.validation - ingest_config.test))
    if dataset is not None:
        from model.plan import plan as plan_training

        chosen = plan_training(str(dataset), config)
        images = chosen.manifest.splits["train"].records
        if _is_there(tracking_uri):
            from model import tracking

            tracking.connect(tracking_uri)
            known = tracking.find_trained(config.model_name, chosen.key)
            if known is not None:
                champion = tracking.champion(config.model_name)
                settled = known == champion or (
                    champion and tracking.refused_before(known, champion, gate)
                )
                writes = "nothing" if settled else "the gate's decision"
                step = Step("train", "cached", str(dataset), f"{writes}; {known} is registered")
                return step, champion if settled else None
    work = images * config.epochs
    scale = (height * width / _TRAINED_PIXELS) * (config.filters / _TRAINED_FILTERS) ** 2
    key = train_key(config, height, width)
    rate = _TRAINED_PER_S / max(scale, 0.01)
    seconds, basis = _estimate(output, key, work, _START_S["train"], rate)
    if train_on != "here":
        seconds, basis = 0, f"not known for pool {train_on}"
    size = _PARAMETERS_AT_32 * (config.filters / _TRAINED_FILTERS) ** 2 * _FLOAT_BYTES
    reads = f"{images:,} images, {config.epochs} times"
    writes = f"a version of {config.model_name} in {tracking_uri}"
    return Step("train", "runs", reads, writes, size, seconds, basis), None


def plan_infer(
    model: str | None,
    dataset: Path | None,
    source: str | None,
    pairs: int,
    output: str,
    config: InferConfig,
    tracking_uri: str,
) -> Step:
    """The step; without a known model and input, all that can be said is how much there is."""
    root = Path(output).absolute() / "predictions"
    images, action = pairs, "runs"
    writes = f"partitions of a new version in {root}"
    if source is not None:
        from beam.versions import survey

        found = survey(source)
        images = found.images or found.loose_pngs
    if model is not None and (source is not None or dataset is not None):
        from beam import runs
        from beam.plan import plan as plan_job

        at = None if source else str(dataset)
        processes = len(os.sched_getaffinity(0))
        job = plan_job(model, source, at, config, tracking_uri, processes)
        partition = runs.partition_of(job.model, job.source_name)
        images = job.images
        if runs.is_published(root, partition, job.run_id):
            return Step("infer", "cached", f"{images:,} images", f"nothing; {partition} is whole")
        action = "replaces" if (root / "masks" / partition).is_dir() else "runs"
        writes = f"{partition} in {root}"
    seconds, basis = _last_inference(root, images)
    return Step("infer", action, f"{images:,} images", writes, images * _ROW_BYTES, seconds, basis)


def _estimate(output: str, key: str, items: int, start_s: float, rate: float) -> tuple[float, str]:
    """Seconds for so many items, and what the estimate rests on."""
    last = recorded(output).get(key)
    if last and last["items"]:
        # A short run is mostly start-up, which a longer one pays once.
        each = max(0.0, last["seconds"] - start_s) / last["items"]
        return min(start_s, last["seconds"]) + items * each, f"last run, {last['items']:,} items"
    return start_s + items / rate, RATES


def _last_inference(root: Path, images: int) -> tuple[float, str]:
    """As ``_estimate``, from the newest row of the table of runs."""
    import pyarrow.parquet as pq

    files = sorted(root.glob("runs/**/run.parquet"), key=lambda one: one.stat().st_mtime)
    if not files:
        return _START_S["infer"] + images / _PREDICTED_PER_S, RATES
    (row,) = pq.ParquetFile(files[-1]).read().to_pylist()
    took = (row["finished_at"] - row["started_at"]).total_seconds()
    start = min(_START_S["infer"], took)
    each = (took - start) / max(row["images_read"], 1)
    return start + images * each, f"last run, {row['images_read']:,} items"


def _is_there(tracking_uri: str) -> bool:
    """Whether a store can be asked without making one."""
    scheme, _, path = tracking_uri.partition(":///")
    return scheme != "sqlite" or Path(path).is_file()


def _record_bytes(manifest: Manifest) -> float:
    return sum(shard.bytes for shard in manifest.shards) / max(manifest.records, 1)


def human(size: float) -> str:
    """Bytes in the unit that reads best."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def parameters_of(given: dict[str, Any]) -> dict[str, Any]:
    """The flow's parameters, checked as the flow checks them.

    Raises:
        UserError: one is unknown or out of bounds; names it.
    """
    from prefect.exceptions import ParameterTypeError

    from flows.ingest_train_infer import ingest_train_infer

    # Prefect logs the whole of what is raised as well.
    logging.getLogger("prefect.flows").setLevel(logging.CRITICAL)

    known = inspect.signature(ingest_train_infer.fn).parameters
    if unknown := sorted(given.keys() - known.keys()):
        raise UserError(f"parameters {unknown} are unknown; expected {sorted(known)}")
    try:
        return ingest_train_infer.validate_parameters(given)
    except ParameterTypeError as error:
        raise UserError(
            "; ".join(line.strip(" -") for line in str(error).splitlines()[1:])
        ) from error


def main(arguments: Sequence[str]) -> str:
    """The command line; returns the plan as a table."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -m flows.plan", description=__doc__
    )
    parser.add_argument("--source", required=True, help="folder or URI of the raw pairs")
    parser.add_argument("--output", default="outputs", help="root of all outputs")
    parser.add_argument("--tracking_uri", default=TRACKING_URI, help="MLflow store or server")
    parser.add_argument(
        "--params", default="{}", help="the flow's other parameters, as JSON, as for Prefect"
    )
    args = parser.parse_args(arguments)
    try:
        given = json.loads(args.params)
    except ValueError as error:
        raise UserError(f"--params is no JSON: {error}") from error
    if not isinstance(given, dict):
        raise UserError(f"--params: expected an object, found {args.params!r}")
    given |= {"source": args.source, "output": args.output, "tracking_uri": args.tracking_uri}
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    steps = plan(**parameters_of(given))
    total = sum(step.seconds for step in steps)
    header = ("step", "action", "reads", "writes", "size", "time", "estimated from")
    return f"{table(header, [step.row() for step in steps])}\n\nin all about {duration(total)}"


if __name__ == "__main__":
    sys.exit(run_main(main))
