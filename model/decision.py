"""Whether one network is better than another: the rule by which the gate decides.

Its input is the confusion matrix of each image of one test split.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from schemas.classes import Taxonomy
from schemas.config import GateConfig
from schemas.stats import Float64Array, Int64Array

_RESAMPLES = 2000
_SEED = 0


class Decision(BaseModel):
    """The gate's decision, made on the test split of one dataset.

    Attributes:
        mean_iou, champion_mean_iou: over all images; the champion's is None if there is none.
        low, high: bootstrap interval of their difference.
        critical: IoU of champion and challenger for each critical class; None if undefined.
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
        """The decision and its figures as Markdown."""
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
    chapter 13. Images of one drive resemble each other, so the interval is too narrow.

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
    # An undefined IoU of the challenger counts as 0.
    fallen = [
        f"{name} from {old:.4f} to {new or 0.0:.4f}"
        for name, (old, new) in critical.items()
        if old is not None and old - (new or 0.0) > config.tolerance
    ]
    problems = []
    # Negated comparisons: NaN, from images without truth, must not promote.
    if not difference > config.margin:
        problems.append(f"not better by more than {config.margin}")
    if not low > 0:
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
    """IoU by class of matrices (…, classes, classes); NaN if a class does not occur."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    union = counts.sum(axis=-1) + counts.sum(axis=-2) - hits
    with np.errstate(invalid="ignore"):
        return np.asarray(hits / union, np.float64)


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
