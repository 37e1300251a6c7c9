"""Evaluates a registered model: ``python -m model.evaluate --model URI --dataset DIR``.

The dataset may be any of the model's classes. Metrics and tables are those of a training; they are
logged to the run that made the version, below ``evaluations/``. The last line of standard output is
the URI of that folder.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.groups import groups_of
from model.plan import Plan, plan
from model.seen import count_seen
from runtime.command_line import (
    UP_TO_DATE,
    Parser,
    add_tracking_uri,
    log,
    log_as,
    make_folder_of,
    run_main,
)
from runtime.errors import UserError
from runtime.imports import import_quickly
from runtime.mlflow_store import outages_as_unavailable
from schemas.classes import Taxonomy
from schemas.config import TrainConfig
from schemas.geometry import Geometry
from schemas.layout import SPLITS
from schemas.manifest import Manifest

if TYPE_CHECKING:
    from model.dataset import DatasetInput
    from model.evaluation import Evaluation

_REPORT = "evaluation.md"
_log = log_as("evaluate")


@outages_as_unavailable()
def run(
    model: str, dataset: str, tracking_uri: str, split: str = "test", report: str | None = None
) -> str:
    """Evaluates a version on a split of a dataset, or on all of it, unless that has been done.

    Args:
        model: ``models:/<name>/<version>`` or ``models:/<name>@<alias>``.
        dataset: folder or URI of a published dataset; its classes must be the model's.
        tracking_uri: MLflow's store or server.
        split: train, validation, test, or all that have records.
        report: file to which metrics and classes are written as Markdown, if one is named.

    Returns:
        URI of the folder of tables and pictures in the version's run.

    Raises:
        UserError: there is no such model or dataset, or their classes differ.
        UnavailableError: MLflow does not answer.
    """
    import_quickly("model.tracking")
    from model import registry, tracking

    tracking.connect(tracking_uri)
    uri = registry.version_of(model)
    if report:
        make_folder_of(report, "--report")
    chosen = plan_for_version(uri, dataset, () if split == "all" else (split,))
    manifest = chosen.manifest
    splits = [part for part in SPLITS if split in ("all", part) and manifest.splits[part].records]
    name = evaluation_name(manifest, split)
    if folder := registry.find_evaluation(uri, name):
        _log(f"{UP_TO_DATE}: {folder}")
    else:
        images = sum(manifest.splits[part].records for part in splits)
        _log(f"{uri} on {images:,} images of {manifest.name} {manifest.fingerprint[:12]}")
        folder = _evaluate(uri, chosen, splits, name)
    text = registry.read_run_file(folder, _REPORT)
    log(text)
    if report:
        Path(report).write_text(text, encoding="utf-8")
    return folder


def evaluation_name(manifest: Manifest, split: str) -> str:
    """Name by which ``registry.find_evaluation`` finds an evaluation on a split, or on all."""
    return f"{manifest.name}-{manifest.fingerprint[:12]}-{split}"


def _evaluate(uri: str, chosen: Plan, splits: Sequence[str], name: str) -> str:
    """Evaluates and logs; returns the URI of the folder that was logged."""
    from model import registry

    network, source, found = evaluate_version(uri, chosen, splits)

    from model import reports
    from model.evaluation import draw_examples, with_frame_metrics

    found = with_frame_metrics(found, network, source, _log, *splits)
    groups = len({name for one in splits for name in groups_of(chosen.folder, one)})
    seen = count_seen(uri, chosen.folder, splits)
    size = (source.trained_at["width"], source.trained_at["height"])
    report = reports.evaluation_report(uri, chosen.manifest, found, splits, groups, seen, size)
    with tempfile.TemporaryDirectory(prefix="lyft-evaluate-") as scratch:
        folder = Path(scratch)
        (folder / _REPORT).write_text(report, encoding="utf-8")
        reports.write_class_table(found, folder / "classes.csv")
        reports.draw_confusion(found.matrix, chosen.taxonomy.names, folder / "confusion.png")
        draw_examples(network, source, found, *splits).save(folder / "examples.png")
        return registry.log_evaluation(uri, name, found.metrics(""), folder)


def plan_for_version(uri: str, dataset: str, needed: Sequence[str]) -> Plan:
    """The training plan of a version, with another dataset.

    Args:
        needed: splits that must have records.

    Raises:
        UserError: the dataset cannot be used, or its classes are not the model's.
    """
    from model import registry

    # The initial weights may no longer exist.
    unneeded = {"start_from": "", "encoder_weights": "none"}
    trained_with = TrainConfig(**registry.train_config(uri) | unneeded)
    chosen = plan(dataset, trained_with, needed)
    own = Taxonomy.model_validate(registry.metadata(uri)["taxonomy"])
    if own.mapping_sha256 != chosen.taxonomy.mapping_sha256:
        raise UserError(
            f"{uri} predicts taxonomy {own.name}, but dataset {dataset!r} holds "
            f"{chosen.taxonomy.name}: their classes differ; name a dataset of the model's classes"
        )
    return chosen


def evaluate_version(
    uri: str, chosen: Plan, splits: Sequence[str]
) -> tuple[Any, DatasetInput, Evaluation]:
    """Loads a version's network and evaluates it on splits of a plan's dataset.

    Returns:
        The network, the dataset as its input, the results.
    """
    from model import registry
    from model.export import load_network

    facts = registry.metadata(uri)
    with registry.keras_file(uri) as path:
        network = load_network(path)
    from model.dataset import DatasetInput
    from model.evaluation import evaluate

    trained_at = {name: facts[name] for name in chosen.input_size()}
    source = DatasetInput(chosen, Geometry.model_validate(facts["geometry"]), trained_at)
    return network, source, evaluate(network, source, chosen.taxonomy, *splits)


def main(arguments: Sequence[str]) -> str:
    """The command line; returns the URI of the folder of tables and pictures."""
    parser = Parser(
        prog="python -m model.evaluate",
        description="Evaluates a registered model on any dataset of its classes.",
    )
    parser.add_argument("--model", required=True, help="models:/<name>/<version> or @<alias>")
    parser.add_argument("--dataset", required=True, help="folder or URI that beam.ingest published")
    parser.add_argument("--split", default="test", choices=[*SPLITS, "all"])
    parser.add_argument("--report", help="file for metrics and classes, in Markdown")
    add_tracking_uri(parser)
    args = parser.parse_args(arguments)
    return run(args.model, args.dataset, args.tracking_uri, args.split, args.report)


if __name__ == "__main__":
    sys.exit(run_main(main))
