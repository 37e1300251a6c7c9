"""Dry run of ingest-train-infer, with estimates of size and time: ``python -m flows.plan``.

Writes nothing. Verifies the checksums of published output, as the run itself would.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flows.lifecycle.durations import ingest_key, recorded_durations, train_key
from flows.lifecycle.preflight import check_parameters
from model.plan import GEOMETRY
from runtime import storage
from runtime.command_line import Parser, add_tracking_uri, run_main
from runtime.errors import UserError, redact_credentials
from runtime.imports import import_quickly
from runtime.mlflow_store import TRACKING_URI, outages_as_unavailable, sqlite_file
from runtime.parquet import read_table
from runtime.table import table
from schemas.config import GateConfig, InferConfig, IngestConfig, TrainConfig
from schemas.manifest import Manifest, load_manifest
from schemas.published import partitions, run_file

RATES_PAGE = "docs/operate.md"
"""Documents how the rates below were measured: 2 cores, no GPU."""

_START_S = {"ingest": 2, "train": 20, "infer": 2}
_PAIRS_PER_S, _TRAINED_PER_S = 245, 30.5
_PREDICTED_PER_S = {16: 169, 32: 70.3}
"""By number of filters, which does not affect the cost of decoding an image and of its mask."""
_RECORD_BYTES_PER_PIXEL = 1.7
_ROW_BYTES = 1400
_PARAMETERS, _PARAMETERS_WITH_ENCODER = 2_161_229, 5_601_933
_MEASURED_PIXELS, _MEASURED_FILTERS = 96 * 128, 16
_TRAINED_WITH_ENCODER, _PREDICTED_WITH_ENCODER = 0.54, 1.41
"""Work per pixel of unet-lite0 with 32 filters, relative to the measured network."""
_FLOAT_BYTES = 4
_NOT_KNOWN = "not known"


@dataclass(frozen=True)
class Step:
    """One line of the plan.

    Attributes:
        action: ``runs``, ``cached`` or ``replaces``.
        written: estimated size, in bytes.
        seconds: estimated duration.
        basis: what the duration is estimated from.
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
        size = format_size(self.written) if self.written else ""
        time = f"about {format_duration(self.seconds)}" if self.seconds else ""
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
    evaluate_on: Sequence[str] | None = None,
    mask_files: str = "none",
    max_drift: float = 0,  # noqa: ARG001 - a parameter of the flow that affects no step
) -> list[Step]:
    """The steps of a run with these parameters, which are those of the flow.

    Raises:
        UserError: the source holds no pairs, or the run could not use its parameters.
    """
    check_parameters(ingest_config, train_config, gate_config, infer_source, evaluate_on or [])
    ingest, dataset, pairs = plan_ingest(source, output, ingest_config)
    train, model = plan_train(
        dataset, pairs, output, train_config, gate_config, tracking_uri, ingest_config, train_on
    )
    size = infer_config if infer_config.height else ingest_config
    cost = relative_cost(train_config, size.height, size.width, _PREDICTED_WITH_ENCODER)
    infer = plan_infer(
        model, dataset, infer_source, pairs, output, infer_config, tracking_uri, cost
    )
    evaluations = [plan_evaluation(other, tracking_uri, model) for other in evaluate_on or []]
    steps = [ingest, train, *evaluations, infer]
    if mask_files != "none":
        folder = storage.join(storage.absolute(storage.local_root(output)), "masks")
        steps.append(Step("masks", "replaces", infer.reads, f"{mask_files} files in {folder}"))
    return steps


def plan_ingest(source: str, output: str, config: IngestConfig) -> tuple[Step, str | None, int]:
    """The step, the folder of the version that it would reuse or None, and the number of pairs."""
    from beam.ingest.incremental import is_unchanged, published_versions
    from beam.ingest.records import recipe_of
    from beam.shared.source import source_of
    from beam.shared.source_digest import digest_pairs

    recipe = recipe_of(source, config)
    storage.require_folder(recipe.source, "source")
    pairs = digest_pairs(source_of(source, config))
    reads = f"{pairs.images:,} pairs, {format_size(pairs.size)}"
    root = storage.join(storage.absolute(output), "datasets", config.name)
    published = published_versions(root, recipe)
    for folder, manifest in published:
        if is_unchanged(folder, manifest, pairs.digest):
            step = Step("ingest", "cached", reads, f"nothing; {folder} is published and intact")
            return step, folder, manifest.records
    writes = f"a new version in {root}"
    record_bytes = config.height * config.width * _RECORD_BYTES_PER_PIXEL
    if published:
        writes += f", beside {len(published)}; unchanged shards are reused"
        record_bytes = _mean_record_bytes(published[0][1])
    start = _START_S["ingest"]
    seconds, basis = _estimate_step(output, ingest_key(config), pairs.images, start, _PAIRS_PER_S)
    written = pairs.images * record_bytes
    return Step("ingest", "runs", reads, writes, written, seconds, basis), None, pairs.images


@outages_as_unavailable()
def plan_train(
    dataset: str | None,
    pairs: int,
    output: str,
    config: TrainConfig,
    gate: GateConfig,
    tracking_uri: str,
    ingest_config: IngestConfig,
    train_on: str,
) -> tuple[Step, str | None]:
    """The step, and the model version to predict with if it is known beforehand, else None."""
    images = round(pairs * (1 - ingest_config.validation - ingest_config.test))
    if dataset is not None:
        from model.plan import check_target
        from model.plan import plan as plan_training

        chosen = plan_training(dataset, config)
        check_target(chosen)
        images = chosen.manifest.splits["train"].records
        # Querying a store that does not exist would create it.
        if (store := sqlite_file(tracking_uri)) is None or store.exists():
            import_quickly("model.tracking")
            from model import registry, tracking
            from model.gate import outcome_if_known

            tracking.connect(tracking_uri)
            known = registry.find_trained(config.model_name, registry.with_pinned_start(chosen).key)
            if known is not None:
                model = outcome_if_known(known, chosen, gate)
                # With promote=always, the gate makes a reused version the champion.
                decides = gate.promote == "always" and registry.champion(config.model_name) != known
                writes = "the gate's decision" if decides or model is None else "nothing"
                return Step("train", "cached", dataset, f"{writes}; {known} is registered"), model
    config = config.for_images(images)
    size = (ingest_config.height, ingest_config.width)
    cost = relative_cost(config, *size, _TRAINED_WITH_ENCODER)
    key = train_key(config, ingest_config.height, ingest_config.width)
    rate = _TRAINED_PER_S / max(cost, 0.01)
    seconds, basis = _estimate_step(output, key, images * config.epochs, _START_S["train"], rate)
    if train_on != "here":
        seconds, basis = 0, f"{_NOT_KNOWN} for pool {train_on}"
    parameters = _PARAMETERS * (config.filters / _MEASURED_FILTERS) ** 2
    if config.architecture not in GEOMETRY:
        parameters = _PARAMETERS_WITH_ENCODER
    reads = f"{images:,} images, {config.epochs} times"
    writes = f"a version of {config.model_name} in {redact_credentials(tracking_uri)}"
    return Step("train", "runs", reads, writes, parameters * _FLOAT_BYTES, seconds, basis), None


@outages_as_unavailable()
def plan_evaluation(dataset: str, tracking_uri: str, model: str | None) -> Step:
    """The step that evaluates the model, if it is known beforehand, on another dataset."""
    manifest = load_manifest(dataset)
    reads = f"{manifest.records:,} images of {manifest.name}"
    if model is not None:
        from model import registry
        from model.evaluate import evaluation_name

        if known := registry.find_evaluation(model, evaluation_name(manifest, "all")):
            return Step("evaluate", "cached", reads, f"nothing; {known} is logged")
    writes = f"metrics and pictures in {redact_credentials(tracking_uri)}"
    return Step("evaluate", "runs", reads, writes, basis=_NOT_KNOWN)


def plan_infer(
    model: str | None,
    dataset: str | None,
    source: str | None,
    pairs: int,
    output: str,
    config: InferConfig,
    tracking_uri: str,
    cost: float,
) -> Step:
    """The step; without a known model and input, only an estimate.

    Args:
        cost: cost of an image in the network, from ``relative_cost``.
    """
    root = storage.join(storage.absolute(output), "predictions")
    images, action = pairs, "runs"
    writes = f"partitions of a new version in {root}"
    if source is not None:
        from beam.shared.source import source_of
        from beam.shared.source_digest import digest_images

        listing = digest_images(source_of(source, config))
        images = listing.images or listing.other_pngs
    if model is not None and (source is not None or dataset is not None):
        from beam.infer import runs
        from beam.infer.plan import plan_job

        dataset = None if source else dataset
        processes = len(os.sched_getaffinity(0))
        with tempfile.TemporaryDirectory(prefix="lyft-model-") as scratch:
            job = plan_job(model, source, dataset, config, tracking_uri, processes, scratch)
        partition = runs.partition_of(job.model, job.source_name)
        images = job.images
        if runs.is_published(root, partition, job.run_id):
            writes = f"nothing; {partition} is published and intact"
            return Step("infer", "cached", f"{images:,} images", writes)
        runs.check_same_origin(root, partition, job.source, job.fingerprint, job.model)
        action = "replaces" if storage.is_folder(storage.join(root, "masks", partition)) else "runs"
        writes = f"{partition} in {root}"
    seconds, basis = _estimate_inference(root, images, cost)
    return Step("infer", action, f"{images:,} images", writes, images * _ROW_BYTES, seconds, basis)


def relative_cost(config: TrainConfig, height: int, width: int, with_encoder: float) -> float:
    """Work of the network per image, relative to the measured network.

    Args:
        with_encoder: that of a network with an encoder, per pixel.
    """
    pixels = height * width / _MEASURED_PIXELS
    if config.architecture in GEOMETRY:
        return pixels * (config.filters / _MEASURED_FILTERS) ** 2
    return pixels * with_encoder


def _estimate_step(
    output: str, key: str, items: int, start_s: float, rate: float
) -> tuple[float, str]:
    """Seconds for this number of items, and what the estimate is based on.

    Args:
        rate: items per second to assume if no run is recorded.
    """
    last = recorded_durations(output).get(key)
    if last and last["items"]:
        # A short run is mostly start-up, which a longer run also pays only once.
        per_item = max(0.0, last["seconds"] - start_s) / last["items"]
        seconds = min(start_s, last["seconds"]) + items * per_item
        return seconds, f"last run, {last['items']:,} items"
    return start_s + items / rate, RATES_PAGE


def _estimate_inference(root: str, images: int, cost: float) -> tuple[float, str]:
    """Like ``_estimate_step``, but based on the newest run in the tables that predicted images."""
    files = [run_file(root, partition) for partition in partitions(root)]
    for file in sorted(files, key=storage.modified, reverse=True):
        (row,) = read_table(file).to_pylist()
        # Reused images cost next to nothing.
        predicted = row["images_read"] - row["images_reused"]
        if predicted:
            seconds = (row["finished_at"] - row["started_at"]).total_seconds()
            start = min(_START_S["infer"], seconds)
            return start + images * (seconds - start) / predicted, f"last run, {predicted:,} items"
    small, large = (1 / rate for rate in _PREDICTED_PER_S.values())
    # Twice the filters means four times the multiplications.
    network_s = (large - small) / 3
    return _START_S["infer"] + images * (small + (cost - 1) * network_s), RATES_PAGE


def _mean_record_bytes(manifest: Manifest) -> float:
    return sum(shard.bytes for shard in manifest.shards) / max(manifest.records, 1)


def format_size(size: float) -> str:
    """Bytes as text, in a suitable unit."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def format_duration(seconds: float) -> str:
    """Seconds as text, in a suitable unit."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def validated_parameters(given: dict[str, Any]) -> dict[str, Any]:
    """The flow's parameters, validated as the flow itself validates them.

    Raises:
        UserError: a parameter is unknown or out of bounds; the message names it.
    """
    from prefect.exceptions import ParameterTypeError

    from flows.ingest_train_infer import ingest_train_infer

    # Otherwise Prefect also logs the whole exception.
    logging.getLogger("prefect.flows").setLevel(logging.CRITICAL)
    known = inspect.signature(ingest_train_infer.fn).parameters
    if unknown := sorted(given.keys() - known.keys()):
        raise UserError(f"parameters {unknown} are unknown; expected {sorted(known)}")
    try:
        return ingest_train_infer.validate_parameters(given)
    except ParameterTypeError as error:
        reasons = "; ".join(line.strip(" -") for line in str(error).splitlines()[1:])
        raise UserError(reasons) from error


def main(arguments: Sequence[str]) -> str:
    """The command line; returns the plan as a table."""
    parser = Parser(prog="python -m flows.plan", description=__doc__)
    parser.add_argument("--source", required=True, help="folder, archive or URI of the raw pairs")
    parser.add_argument("--output", help="root of all outputs (default: outputs)")
    add_tracking_uri(parser)
    defaults = {"tracking_uri": parser.get_default("tracking_uri")}
    # --params overrides a default, but not an option that was given.
    parser.set_defaults(tracking_uri=None)
    parser.add_argument(
        "--params", default="{}", help="the flow's parameters, as JSON, as for Prefect"
    )
    args = parser.parse_args(arguments)
    try:
        params = json.loads(args.params)
    except ValueError as error:
        raise UserError(f"--params is not valid JSON: {error}") from error
    if not isinstance(params, dict):
        raise UserError(f"--params: expected an object, found {args.params!r}")
    options = {name: getattr(args, name) for name in ("source", "output", "tracking_uri")}
    options = {name: value for name, value in options.items() if value is not None}
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    steps = plan(**validated_parameters(defaults | params | options))
    total = f"total: about {format_duration(sum(step.seconds for step in steps))}"
    if any(_NOT_KNOWN in step.basis for step in steps):
        total += ", plus the steps whose time is not known"
    header = ("step", "action", "reads", "writes", "size", "time", "estimated from")
    return f"{table(header, [step.row() for step in steps])}\n\n{total}"


if __name__ == "__main__":
    sys.exit(run_main(main))
