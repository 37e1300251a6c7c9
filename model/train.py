"""A published dataset to a registered model: ``python -m model.train --dataset DIR``.

The last line of standard output is the URI of the version to predict with: the new one, or the
champion that it did not beat.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.checkpoint import Checkpoint, Progress, checkpoint
from model.gate import NotPromotedError, check_champion, judge
from model.plan import Plan, plan
from schemas.cli import add_config, config_from, run_main
from schemas.config import GateConfig, TrainConfig
from schemas.errors import UnavailableError, UserError
from schemas.layout import TRACKING_URI, TRAINING_STATE
from schemas.quiet import import_tensorflow
from schemas.stats import Int64Array

if TYPE_CHECKING:
    from model import tracking

PATIENCE_S = 60.0
"""How long a finished training waits for an MLflow server that does not answer."""


def run(
    dataset: str,
    config: TrainConfig,
    tracking_uri: str,
    gate: GateConfig | None = None,
    *,
    state: str = TRAINING_STATE,
    reuse: bool = False,
    parent: str | None = None,
) -> str:
    """Trains, evaluates on the test split, logs, registers, and lets the gate decide.

    A training that was interrupted goes on after its last finished epoch.

    Args:
        dataset: a published dataset folder.
        tracking_uri: MLflow's store or server.
        gate: when the version becomes champion; by default if it is better.
        state: folder of the checkpoints of unfinished trainings.
        reuse: takes the version trained before with the same dataset and config, if there is.
        parent: MLflow run of the sweep that this training is part of.

    Returns:
        ``models:/<name>/<version>`` of the version to predict with.

    Raises:
        UserError: the dataset cannot be trained on, or the gate left no champion.
        UnavailableError: MLflow does not answer; a finished training is kept in ``state``.
    """
    gate = gate or GateConfig()
    chosen = plan(dataset, config)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from model import tracking

    tracking.connect(tracking_uri)
    if gate.promote == "gate":
        check_champion(config.model_name, chosen.taxonomy)
    if reuse and (known := tracking.find_trained(config.model_name, chosen.key)):
        say(f"nothing has changed: {known} was trained on this dataset with this configuration")
        return judge(known, chosen, gate, say)

    start = starting_weights(chosen)
    import_tensorflow()
    with checkpoint(state, chosen.key) as kept:
        try:
            uri, counts = _train(chosen, kept, start, parent)
            better = tracking.patiently(
                lambda: judge(uri, chosen, gate, say, counts), PATIENCE_S, say
            )
        except UnavailableError as error:
            raise UnavailableError(
                f"{error}; the training is kept in {kept.folder}: run the same command again "
                "when it is back"
            ) from error
        except NotPromotedError:
            kept.remove()
            raise
        kept.remove()
        return better


def starting_weights(chosen: Plan) -> Path | None:
    """File of the weights that training begins with, where a model to start from is named.

    Raises:
        UserError: there is no such model, or its classes are others.
    """
    origin = chosen.config.start_from
    if not origin:
        return None
    if not origin.startswith(("models:/", "runs:/")):
        if not Path(origin).is_file():
            raise UserError(f"start_from {origin!r}: there is no such .keras file")
        return Path(origin)
    from model import tracking

    classes = tracking.metadata(origin)["taxonomy"]
    if classes["name"] != chosen.taxonomy.name or len(classes["classes"]) != len(chosen.taxonomy):
        raise UserError(
            f"start_from {origin!r} has the {len(classes['classes'])} classes of taxonomy "
            f"{classes['name']}, dataset {chosen.manifest.name} the {len(chosen.taxonomy)} of "
            f"{chosen.taxonomy.name}; start from a model of the same classes"
        )
    return tracking.keras_file(origin)


def _train(
    chosen: Plan, kept: Checkpoint, start: Path | None, parent: str | None
) -> tuple[str, Int64Array]:
    """One MLflow run from the first epoch to the registered version."""
    from model import tracking
    from model.fit import fit

    config = chosen.config
    say(f"{chosen.manifest.splits['train'].records} training images, {config.epochs} epochs")
    with tracking.training_run(chosen, kept.run_id, parent, say) as run:
        kept.run_id = run.id
        model, progress = fit(chosen, kept, run.log_epochs, say, start)
        return _deliver(chosen, model, progress, run)


def _deliver(
    chosen: Plan, model: Any, progress: Progress, run: tracking.Run
) -> tuple[str, Int64Array]:
    """Evaluates the network and hands it to MLflow, with all that a person wants to see."""
    from model import pictures, tracking
    from model.dataset import Input
    from model.evaluate import draw_examples, evaluate
    from model.export import export_openvino

    config, source = chosen.config, Input(chosen)
    found = evaluate(model, source, chosen.taxonomy, "test")
    metrics = found.metrics()
    card = pictures.model_card(chosen, found, progress.best_epoch, model.count_params())
    with tempfile.TemporaryDirectory(prefix="lyft-train-") as scratch:
        folder = Path(scratch)
        pictures.draw_curves(progress.epochs, folder / "curves.png")
        pictures.write_class_table(found, folder / "classes.csv")
        pictures.draw_confusion(found.matrix, chosen.taxonomy.names, folder / "confusion.png")
        draw_examples(model, source, found, "test").save(folder / "examples.png")
        (folder / "model_card.md").write_text(card, encoding="utf-8")
        keras_file = folder / "model" / "unet.keras"
        keras_file.parent.mkdir()
        model.save(keras_file)
        graph = export_openvino(keras_file, keras_file.parent / "openvino")
        files = {"keras_file": keras_file, "openvino": graph.parent}

        def deliver() -> str:
            run.send(progress.epochs)
            tracking.log_metrics({**metrics, "best_epoch": progress.best_epoch})
            for path in sorted(folder.glob("*.*")):
                tracking.log_file(path)
            # A delivery that was cut short after it had registered is not made twice.
            known = tracking.find_trained(config.model_name, chosen.key, run.id)
            return known or tracking.register(files, chosen, metrics, card)

        uri = tracking.patiently(deliver, PATIENCE_S, say)
    say(", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    return uri, found.counts


def say(text: str) -> None:
    """A line for the person who watches; standard output is for the result alone."""
    print(f"train: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> str:
    """The command line; returns the URI of the version to predict with."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m model.train",
        description="Trains the U-Net on a published dataset.",
    )
    parser.add_argument("--dataset", required=True, help="folder that beam.ingest published")
    parser.add_argument(
        "--tracking_uri", default=TRACKING_URI, help=f"MLflow store (default: {TRACKING_URI})"
    )
    parser.add_argument(
        "--state",
        default=TRAINING_STATE,
        help=f"folder of unfinished trainings (default: {TRAINING_STATE})",
    )
    parser.add_argument(
        "--reuse", action="store_true", help="take the version trained with the same input"
    )
    parser.add_argument("--parent_run", help="MLflow run of the sweep that this one is part of")
    add_config(parser, TrainConfig)
    add_config(parser, GateConfig)
    args = parser.parse_args(arguments)
    return run(
        args.dataset,
        config_from(TrainConfig, args),
        args.tracking_uri,
        config_from(GateConfig, args),
        state=args.state,
        reuse=args.reuse,
        parent=args.parent_run,
    )


if __name__ == "__main__":
    sys.exit(run_main(main))
