"""Trains and registers a model: ``python -m model.train --dataset DIR``.

The last line of standard output is the URI of the version to predict with: the new one, or the
champion that it did not beat.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.backend import choose, import_keras
from model.checkpoint import Checkpoint, Progress, checkpoint, discard
from model.decision import critical_classes
from model.gate import NotPromotedError, check_champion, run_gate
from model.plan import REGISTERED, Plan, check_target, plan
from model.reuse import find_reusable_result
from runtime.command_line import (
    UP_TO_DATE,
    Parser,
    add_config,
    add_tracking_uri,
    config_from,
    log_as,
    make_folder_of,
    run_main,
)
from runtime.errors import UnavailableError, UserError
from runtime.imports import import_quickly
from runtime.mlflow_store import outages_as_unavailable
from schemas.config import GateConfig, TrainConfig
from schemas.layout import TRAINING_STATE
from schemas.stats import Int64Array

if TYPE_CHECKING:
    from model import tracking

OUTAGE_TIMEOUT_S = 60.0
"""How long a finished training waits for an MLflow server that does not answer."""

log = log_as("train")


@outages_as_unavailable()
def run(
    dataset: str,
    config: TrainConfig,
    tracking_uri: str,
    gate: GateConfig | None = None,
    *,
    state: str = TRAINING_STATE,
    reuse: bool = False,
    parent: str | None = None,
    decision: str | None = None,
) -> str:
    """Trains, evaluates on the test split, logs, registers, and lets the gate decide.

    An interrupted training resumes after its last finished epoch.

    Args:
        dataset: folder or URI of a published dataset.
        tracking_uri: MLflow's store or server.
        gate: when the version becomes champion; by default, if it is better.
        state: folder of the checkpoints of unfinished trainings.
        reuse: whether to take a version already trained with the same dataset and config, and to
            wait for a process that is training it.
        parent: MLflow run of the sweep that this training is part of.
        decision: file to which the gate's decision is written as Markdown, if there is one.

    Returns:
        ``models:/<name>/<version>`` of the version to predict with.

    Raises:
        UserError: the dataset cannot be trained on, or the gate left no champion.
        UnavailableError: MLflow does not answer; a finished training is kept in ``state``.
    """
    gate = gate or GateConfig()
    chosen = plan(dataset, config)
    check_target(chosen)
    critical_classes(gate, chosen.taxonomy)
    if reuse and (result := find_reusable_result(chosen, gate, tracking_uri, state, decision, log)):
        return result
    import_quickly("model.tracking")
    from model import registry, tracking

    tracking.connect(tracking_uri)
    chosen = registry.with_pinned_start(chosen)
    if gate.promote == "gate":
        check_champion(config.model_name, chosen.taxonomy)
    if reuse and (known := registry.find_trained(config.model_name, chosen.key)):
        discard(state, chosen.key)
        return _reuse(known, chosen, gate, decision)

    wait_log = log if reuse else None
    with starting_weights(chosen) as start, checkpoint(state, chosen.key, wait_log) as saved:
        # Another process may have finished this training meanwhile.
        if reuse and (known := registry.find_trained(config.model_name, chosen.key)):
            saved.remove()
            return _reuse(known, chosen, gate, decision)
        import_keras(choose(config.backend))
        try:
            uri, counts = _train(chosen, saved, start, parent)
            result = tracking.retry_during_outage(
                lambda: _run_gate(uri, chosen, gate, decision, counts), OUTAGE_TIMEOUT_S, log
            )
        except UnavailableError as error:
            raise UnavailableError(
                f"{error}; the training is kept in {saved.folder}: run the same command again "
                "when it is back"
            ) from error
        except NotPromotedError:
            saved.remove()
            raise
        saved.remove()
        return result


def _reuse(known: str, chosen: Plan, gate: GateConfig, decision: str | None) -> str:
    """Lets the gate decide on a version that an earlier training has registered."""
    from model import registry

    log(f"{UP_TO_DATE}: {known} was trained on this dataset with this configuration")
    registry.end_open_run(known)
    return _run_gate(known, chosen, gate, decision)


def _run_gate(
    uri: str, chosen: Plan, gate: GateConfig, decision: str | None, counts: Int64Array | None = None
) -> str:
    """Calls ``gate.run_gate``; writes its decision, or an earlier one, to the file ``decision``."""
    from model import registry

    try:
        return run_gate(uri, chosen, gate, log, counts)
    finally:
        if decision:
            registry.save_decision(uri, Path(decision))


@contextmanager
def starting_weights(chosen: Plan) -> Iterator[Path | None]:
    """Yields the file of the initial weights, or None if ``start_from`` is empty.

    Raises:
        UserError: there is no such model, or its classes differ.
    """
    origin = chosen.config.start_from
    if not origin.startswith(REGISTERED):
        yield Path(origin) if origin else None
        return
    from model import registry

    taxonomy = registry.metadata(origin)["taxonomy"]
    names = [label["name"] for label in taxonomy["classes"]]
    if names != list(chosen.taxonomy.names):
        raise UserError(
            f"start_from {origin!r} has the classes {', '.join(names)} of taxonomy "
            f"{taxonomy['name']}, dataset {chosen.manifest.name} has "
            f"{', '.join(chosen.taxonomy.names)} of {chosen.taxonomy.name}; start from a model of "
            "the same classes in the same order"
        )
    with registry.keras_file(origin) as path:
        yield path


def _train(
    chosen: Plan, saved: Checkpoint, start: Path | None, parent: str | None
) -> tuple[str, Int64Array]:
    """One MLflow run from the first epoch to the registered version."""
    from model import tracking
    from model.fit import fit

    config = chosen.config
    log(f"{chosen.manifest.splits['train'].records} training images, {config.epochs} epochs")

    def save_run_id(run_id: str) -> None:
        saved.run_id = run_id

    with tracking.training_run(chosen, saved.run_id, parent, log, save_run_id) as run:
        model, progress = fit(chosen, saved, run.log_epochs, log, start)
        return _evaluate_and_register(chosen, model, progress, run)


def _evaluate_and_register(
    chosen: Plan, model: Any, progress: Progress, run: tracking.Run
) -> tuple[str, Int64Array]:
    """Evaluates the network and registers it with its metrics, pictures and model card."""
    from model import registry, reports, tracking
    from model.dataset import DatasetInput
    from model.evaluation import draw_examples, evaluate, prediction_profile, with_frame_metrics
    from model.export import export_by_tensorflow

    config, source = chosen.config, DatasetInput(chosen)
    found = evaluate(model, source, chosen.taxonomy, "test")
    found = with_frame_metrics(found, model, source, log, "test")
    validation = prediction_profile(model, source, chosen.taxonomy, "validation")
    metrics = found.metrics()
    card = reports.model_card(chosen, found, progress.best_epoch, model.count_params())
    with tempfile.TemporaryDirectory(prefix="lyft-train-") as scratch:
        folder = Path(scratch)
        reports.draw_curves(progress.epochs, folder / "curves.png")
        reports.write_class_table(found, folder / "classes.csv")
        reports.draw_confusion(found.matrix, chosen.taxonomy.names, folder / "confusion.png")
        draw_examples(model, source, found, "test").save(folder / "examples.png")
        (folder / "model_card.md").write_text(card, encoding="utf-8")
        keras_file = folder / "model" / "unet.keras"
        keras_file.parent.mkdir()
        model.save(keras_file)
        openvino = keras_file.parent / "openvino"
        export_by_tensorflow(keras_file, openvino)
        files = {"keras_file": keras_file, "openvino": openvino}

        def log_and_register() -> str:
            run.send(progress.epochs)
            tracking.log_metrics({**metrics, "best_epoch": progress.best_epoch})
            for path in sorted(folder.glob("*.*")):
                tracking.log_file(path)
            # An attempt that was cut short may have registered the model.
            known = registry.find_trained(config.model_name, chosen.key, run.id)
            return known or registry.register(files, chosen, metrics, card, validation)

        uri = tracking.retry_during_outage(log_and_register, OUTAGE_TIMEOUT_S, log)
    log(", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    return uri, found.counts


def main(arguments: Sequence[str]) -> str:
    """The command line; returns the URI of the version to predict with."""
    parser = Parser(
        prog="python -m model.train", description="Trains the U-Net on a published dataset."
    )
    parser.add_argument(
        "--dataset", required=True, help="folder or URI of a dataset that beam.ingest published"
    )
    add_tracking_uri(parser)
    parser.add_argument(
        "--state",
        default=TRAINING_STATE,
        help=f"folder of unfinished trainings (default: {TRAINING_STATE})",
    )
    parser.add_argument(
        "--reuse", action="store_true", help="take the version trained with the same input"
    )
    parser.add_argument("--parent_run", help="MLflow run of the sweep that this one is part of")
    parser.add_argument("--decision", help="file that takes the gate's decision as Markdown")
    add_config(parser, TrainConfig)
    add_config(parser, GateConfig)
    args = parser.parse_args(arguments)
    if args.decision:
        make_folder_of(args.decision, "--decision")
    return run(
        args.dataset,
        config_from(TrainConfig, args),
        args.tracking_uri,
        config_from(GateConfig, args),
        state=args.state,
        reuse=args.reuse,
        parent=args.parent_run,
        decision=args.decision,
    )


if __name__ == "__main__":
    sys.exit(run_main(main))
