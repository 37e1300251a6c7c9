"""The gate: whether a new version takes the champion's place, and the way back.

``python -m model.gate --model models:/lyft-unet/3 --dataset DIR`` decides anew;
``python -m model.gate --rollback lyft-unet`` gives the alias back to the champion before.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from model.plan import Plan, plan
from schemas.classes import Taxonomy
from schemas.cli import add_config, config_from, run_main
from schemas.config import GateConfig, TrainConfig
from schemas.errors import UserError
from schemas.geometry import Geometry
from schemas.layout import TRACKING_URI
from schemas.quiet import import_tensorflow
from schemas.stats import Float64Array, Int64Array

Say = Callable[[str], None]

_RESAMPLES = 2000
_SEED = 0


class Decision(BaseModel):
    """What the gate found, on the test split of one dataset.

    Attributes:
        mean_iou, champion_mean_iou: over all images; the champion's is None without one.
        low, high: bootstrap interval of their difference.
        critical: IoU of each critical class, of champion and challenger; None where undefined.
    """

    model_config = ConfigDict(frozen=True)

    promoted: bool
    reason: str
    mean_iou: float
    champion_mean_iou: float | None = None
    low: float | None = None
    high: float | None = None
    critical: dict[str, tuple[float | None, float | None]] = {}

    def to_markdown(self, challenger: str, champion: str | None) -> str:
        """The decision with its numbers, for a person."""
        lines = [
            f"# {'Promoted' if self.promoted else 'Not promoted'}: {challenger}",
            "",
            self.reason,
            "",
            f"| | {champion or 'no champion'} | {challenger} |",
            "| --- | ---: | ---: |",
            f"| mean IoU | {_shown(self.champion_mean_iou)} | {_shown(self.mean_iou)} |",
            *(
                f"| IoU {name} | {_shown(before)} | {_shown(after)} |"
                for name, (before, after) in self.critical.items()
            ),
        ]
        return "\n".join(lines) + "\n"


def decide(
    challenger: Int64Array, champion: Int64Array | None, taxonomy: Taxonomy, config: GateConfig
) -> Decision:
    """Compares two networks over the same images.

    The interval is the percentile bootstrap over images, paired: both networks are summed over
    the same resample. Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993,
    chapter 13. Images of one drive resemble each other, so it is narrower than the truth.

    Args:
        challenger, champion: confusion matrix of each image, int64 (images, classes, classes).
    """
    names = [name.strip() for name in config.critical.split(",")]
    ids = [label.id for label in taxonomy.classes if label.name in names]
    after = _iou(challenger.sum(axis=0))
    mean = float(np.nanmean(after))
    if champion is None:
        found = {taxonomy.names[i]: (None, _defined(after[i])) for i in ids}
        enough = mean >= config.floor
        said = "reaches" if enough else "is below"
        reason = f"There is no champion; mean IoU {mean:.4f} {said} the floor of {config.floor}."
        return Decision(promoted=enough, reason=reason, mean_iou=mean, critical=dict(found))

    before = _iou(champion.sum(axis=0))
    mean_before = float(np.nanmean(before))
    critical = {taxonomy.names[i]: (_defined(before[i]), _defined(after[i])) for i in ids}
    low, high = _interval(challenger, champion, config.confidence)
    difference = mean - mean_before
    figures = (
        f"mean IoU {mean:.4f} against {mean_before:.4f}: {difference:+.4f}, "
        f"{config.confidence:.0%} interval {low:+.4f} to {high:+.4f}"
    )
    # A class that the challenger no longer finds anywhere has fallen to nothing.
    fallen = [
        f"{name} from {old:.4f} to {new or 0.0:.4f}"
        for name, (old, new) in critical.items()
        if old is not None and old - (new or 0.0) > config.tolerance
    ]
    problems = []
    if difference <= config.margin:
        problems.append(f"not better by more than {config.margin}")
    if low <= 0:
        problems.append("the interval does not lie above 0")
    if fallen:
        problems.append(f"more than {config.tolerance} lost: {', '.join(fallen)}")
    verdict = "; ".join(problems) if problems else "better, and no critical class falls"
    return Decision(
        promoted=not problems,
        reason=f"{figures}; {verdict}.",
        mean_iou=mean,
        champion_mean_iou=mean_before,
        low=low,
        high=high,
        critical=critical,
    )


class NotPromotedError(UserError):
    """The gate did not promote a version, and there is no champion to predict with."""


def judge(
    uri: str, plan: Plan, config: GateConfig, say: Say, counts: Int64Array | None = None
) -> str:
    """Decides on a registered version, moves the aliases and logs the decision.

    Args:
        plan: what the version was trained on; both networks are evaluated on its test split.
        counts: confusion matrix of each of its images, where the version was evaluated before.

    Returns:
        The version to predict with: this one, or the champion that it did not beat.

    Raises:
        NotPromotedError: the version was not promoted and there is no champion.
    """
    from model import tracking

    champion = tracking.champion(plan.config.model_name)
    if config.promote == "never" or champion == uri:
        return uri
    tracking.set_alias(uri, tracking.CHALLENGER)
    if config.promote == "gate" and (reason := tracking.refused_before(uri, champion, config)):
        say(f"not promoted: {reason}")
        return _champion_or_error(uri, champion, reason)
    decision = _decide_on(uri, champion, plan, config, say, counts)
    tracking.log_decision(uri, champion, decision, config)
    say(f"{'promoted' if decision.promoted else 'not promoted'}: {decision.reason}")
    return uri if decision.promoted else _champion_or_error(uri, champion, decision.reason)


def check_champion(name: str, taxonomy: Taxonomy) -> None:
    """Refuses a training whose result could not be compared with the champion.

    Raises:
        UserError: the champion has another taxonomy.
    """
    from model import tracking

    champion = tracking.champion(name)
    if champion is None:
        return
    other = Taxonomy.model_validate(tracking.metadata(champion)["taxonomy"])
    if other.sha256 != taxonomy.sha256:
        raise UserError(
            f"champion {champion} has taxonomy {other.name}, this training {taxonomy.name}: "
            "they cannot be compared; choose another --model_name, or --promote=always"
        )


def main(arguments: Sequence[str]) -> str:
    """The command line; returns the URI of the champion."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m model.gate",
        description="Decides whether a version becomes champion, or rolls back.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help="models:/<name>/<version> to decide on")
    what.add_argument("--rollback", metavar="NAME", help="give the alias to the champion before")
    parser.add_argument("--dataset", help="folder whose test split decides")
    parser.add_argument(
        "--tracking_uri", default=TRACKING_URI, help=f"MLflow store (default: {TRACKING_URI})"
    )
    add_config(parser, GateConfig)
    args = parser.parse_args(arguments)
    config = config_from(GateConfig, args)
    from model import tracking

    tracking.connect(args.tracking_uri)
    if args.rollback:
        return tracking.rollback(args.rollback)
    if not args.dataset:
        raise UserError("expected --dataset, whose test split decides")
    trained_with = TrainConfig(**tracking.train_config(args.model))
    chosen = plan(args.dataset, trained_with)
    check_champion(trained_with.model_name, chosen.taxonomy)
    return judge(args.model, chosen, config, _say)


def _decide_on(
    uri: str,
    champion: str | None,
    plan: Plan,
    config: GateConfig,
    say: Say,
    counts: Int64Array | None,
) -> Decision:
    challenger = _counts(uri, plan) if counts is None else counts
    if config.promote == "always":
        regardless = decide(challenger, None, plan.taxonomy, config)
        reason = "Promoted regardless, as asked for."
        return regardless.model_copy(update={"promoted": True, "reason": reason})
    if champion is None:
        return decide(challenger, None, plan.taxonomy, config)
    say(f"the gate: {uri} against the champion {champion}")
    return decide(challenger, _counts(champion, plan), plan.taxonomy, config)


def _champion_or_error(uri: str, champion: str | None, reason: str) -> str:
    if champion is None:
        raise NotPromotedError(
            f"{uri} is registered as challenger and was not promoted: {reason} "
            "Train longer or on more, lower --floor, or --promote=always"
        )
    return champion


def _counts(uri: str, plan: Plan) -> Int64Array:
    from model import tracking

    import_tensorflow()
    import keras

    from model.dataset import Input
    from model.evaluate import evaluate

    facts = tracking.metadata(uri)
    network = keras.saving.load_model(tracking.keras_file(uri), compile=False, safe_mode=True)
    source = Input(plan, Geometry.model_validate(facts["geometry"]))
    return evaluate(network, source, plan.taxonomy, "test").counts


def _interval(
    challenger: Int64Array, champion: Int64Array, confidence: float
) -> tuple[float, float]:
    images = len(challenger)
    draws = np.random.default_rng(_SEED).multinomial(
        images, np.full(images, 1 / images), _RESAMPLES
    )
    difference = [
        np.nanmean(_iou(np.tensordot(draws, counts, axes=1)), axis=-1)
        for counts in (challenger, champion)
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(difference[0] - difference[1], [tail, 1 - tail])
    return float(low), float(high)


def _iou(counts: npt.NDArray[Any]) -> Float64Array:
    """IoU by class of matrices (…, classes, classes), NaN where a class does not occur."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    union = counts.sum(axis=-1) + counts.sum(axis=-2) - hits
    with np.errstate(invalid="ignore"):
        return np.asarray(hits / union, np.float64)


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _say(text: str) -> None:
    print(f"gate: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(run_main(main))
