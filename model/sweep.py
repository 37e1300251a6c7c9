"""Trains over a grid of parameters under one parent run; the gate decides on the best version.

``python -m model.sweep --dataset DIR --grid filters=16,32 --grid learning_rate=1e-3,3e-3``. Each
training is its own process, so that a GPU's memory is freed before the next one. The last line of
standard output is the URI of the version to predict with.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from model.plan import check_target, plan
from runtime.child_processes import child_environment
from runtime.command_line import (
    EX_TEMPFAIL,
    Parser,
    add_config,
    add_tracking_uri,
    config_from,
    log,
    log_as,
    run_main,
    to_arguments,
)
from runtime.errors import UnavailableError, UserError
from runtime.imports import import_quickly
from runtime.mlflow_store import outages_as_unavailable
from schemas.config import GateConfig, TrainConfig
from schemas.layout import TRAINING_STATE

_SCORE = "val_mean_iou"
_log = log_as("sweep")


@outages_as_unavailable()
def run(
    dataset: str,
    configs: Sequence[TrainConfig],
    tracking_uri: str,
    gate: GateConfig,
    state: str = TRAINING_STATE,
) -> str:
    """Trains once for each configuration; the gate judges the one that is best on validation.

    An interrupted sweep resumes: finished trainings are not repeated. A configuration whose
    training fails, e.g. since it diverges, is a row of the summary; the others go on.

    Returns:
        ``models:/<name>/<version>`` of the version to predict with.

    Raises:
        UserError: the configurations do not fit the dataset or each other, none could be trained,
            or the gate left no champion.
        UnavailableError: MLflow does not answer.
    """
    import_quickly("model.tracking")
    from model import registry, tracking
    from model.decision import critical_classes
    from model.gate import check_champion, run_gate

    plans = [plan(dataset, config) for config in configs]
    if len({one.taxonomy.mapping_sha256 for one in plans}) > 1:
        raise UserError(
            "--grid target: models of different classes cannot be compared; sweep over one target, "
            "--target, at a time"
        )
    for one in plans:
        check_target(one)
    critical_classes(gate, plans[0].taxonomy)
    tracking.connect(tracking_uri)
    # An alias may move during the sweep.
    plans = [registry.with_pinned_start(one) for one in plans]
    if gate.promote == "gate":
        for name in {config.model_name for config in configs}:
            check_champion(name, plans[0].taxonomy)
    parent = tracking.start_sweep(plans[0], [one.key for one in plans])
    trained, rows = [], []
    try:
        for number, (config, one) in enumerate(zip(configs, plans, strict=True), 1):
            parameters = _difference(configs, config)
            _log(f"{number}/{len(configs)}: {parameters}")
            uri = _train(dataset, one.config, tracking_uri, state, parent)
            if uri is None:
                _log(f"warning: the training with {parameters} failed, see above")
                rows.append(f"| failed | {parameters} | |")
                continue
            score = registry.kept_metric(uri, _SCORE)
            trained.append((score, uri, one))
            rows.append(f"| {uri} | {parameters} | {score:.4f} |")
    except BaseException:
        tracking.fail_sweep(parent)
        raise
    if not trained:
        tracking.fail_sweep(parent)
        raise UserError("no configuration of the sweep could be trained, see above")
    header = [f"| version | parameters | {_SCORE} |", "| --- | --- | ---: |"]
    table = "\n".join([*header, *rows])
    log(table)
    # The first one wins a tie, so that the same sweep gives the same result.
    best_score, best, best_plan = max(trained, key=itemgetter(0))
    tracking.end_sweep(parent, table, best_score)
    return run_gate(best, best_plan, gate, _log)


def grid(base: TrainConfig, axes: Sequence[str]) -> list[TrainConfig]:
    """The configurations of ``name=value,value`` axes, the last axis changing fastest.

    Raises:
        UserError: an axis is not of that form or given twice, or a value is out of bounds.
    """
    names, values = [], []
    for axis in axes:
        name, separator, listed = axis.partition("=")
        if not separator or name not in TrainConfig.model_fields or not listed:
            raise UserError(
                f"--grid {axis!r}: expected <parameter>=<value>,<value>, the parameter one of "
                + ", ".join(TrainConfig.model_fields)
            )
        if name in names:
            raise UserError(f"--grid {axis!r}: {name} is given twice; list all its values at once")
        names.append(name)
        values.append(listed.split(","))
    parser = Parser()
    add_config(parser, TrainConfig)
    configs = []
    for combination in itertools.product(*values):
        chosen = [f"--{name}={value}" for name, value in zip(names, combination, strict=True)]
        try:
            args = parser.parse_args([*to_arguments(base), *chosen])
        except UserError as error:
            raise UserError(f"--grid: {error}") from error
        configs.append(config_from(TrainConfig, args))
    return configs


def main(arguments: Sequence[str]) -> str:
    """The command line; returns the URI of the version to predict with."""
    parser = Parser(
        prog="python -m model.sweep",
        description="Trains over a grid of parameters and judges the best.",
    )
    parser.add_argument("--dataset", required=True, help="folder that beam.ingest published")
    parser.add_argument(
        "--grid", action="append", required=True, help="name=value,value; once for each parameter"
    )
    add_tracking_uri(parser)
    parser.add_argument("--state", default=TRAINING_STATE, help="folder of unfinished trainings")
    add_config(parser, TrainConfig)
    add_config(parser, GateConfig)
    args = parser.parse_args(arguments)
    configs = grid(config_from(TrainConfig, args), args.grid)
    return run(
        args.dataset, configs, args.tracking_uri, config_from(GateConfig, args), state=args.state
    )


def _train(
    dataset: str, config: TrainConfig, tracking_uri: str, state: str, parent: str
) -> str | None:
    """Trains in a process of its own; None if that fails, for which it has said the reason."""
    command = [
        *(sys.executable, "-m", "model.train"),
        f"--dataset={dataset}",
        f"--tracking_uri={tracking_uri}",
        f"--state={state}",
        f"--parent_run={parent}",
        *("--reuse", "--promote=never"),
        *to_arguments(config),
    ]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=False, env=child_environment()
    )
    if done.returncode == EX_TEMPFAIL:
        raise UnavailableError(
            f"the training of this configuration found a service that does not answer, see above: "
            f"{config}"
        )
    if done.returncode != 0:
        return None
    return done.stdout.splitlines()[-1]


def _difference(configs: Sequence[TrainConfig], config: TrainConfig) -> str:
    """The parameters in which a configuration differs from any other, as text."""
    every: list[dict[str, Any]] = [one.model_dump() for one in configs]
    return ", ".join(
        f"{name}={value}"
        for name, value in config.model_dump().items()
        if any(one[name] != value for one in every)
    )


if __name__ == "__main__":
    sys.exit(run_main(main))
