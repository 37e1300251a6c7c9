"""The gate's rule: whether one network is better than another on a test split.

It takes the confusion matrix of each image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from runtime.errors import UserError
from schemas.classes import Taxonomy
from schemas.config import GateConfig
from schemas.stats import ConfusionMatrix, Int64Array, iou_by_class

_CRITICAL = (
    *("Vehicles", "Car", "car"),
    *("Pedestrians", "Pedestrian", "person"),
    *("Roads", "Road", "road"),
)
"""Classes that are critical by default, by their names in taxonomies."""

_RESAMPLES = 2000
_SEED = 0

ONE_CLASS = "the test split has fewer than two classes, so it tells nothing"
"""The reason for which no network is promoted, however good its figures are."""


class Decision(BaseModel):
    """The gate's decision, made on the test split of one dataset.

    Attributes:
        mean_iou, champion_mean_iou: over all images; the champion's is None if there is none.
        low, high: bootstrap interval of their difference.
        groups: number of groups of test images that belong together, which the bootstrap draws;
            those whose truth is all void are left out.
        critical: IoU of champion and challenger for each critical class; None if undefined.
    """

    model_config = ConfigDict(frozen=True)

    promoted: bool
    reason: str
    mean_iou: float
    champion_mean_iou: float | None = None
    low: float | None = None
    high: float | None = None
    groups: int = 0
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
            f"| mean IoU | {_format(self.champion_mean_iou)} | {_format(self.mean_iou)} |",
            *(
                f"| IoU {name} | {_format(before)} | {_format(after)} |"
                for name, (before, after) in self.critical.items()
            ),
            "",
            f"Groups of test images that belong together: {self.groups:,}.",
        ]
        return "\n".join(lines) + "\n"


def critical_classes(config: GateConfig, taxonomy: Taxonomy) -> list[int]:
    """Ids of the classes that must not fall.

    Raises:
        UserError: a name is not in the taxonomy.
    """
    names = [name.strip() for name in config.critical.split(",") if name.strip()]
    if unknown := [name for name in names if name not in taxonomy.names]:
        raise UserError(
            f"critical {','.join(unknown)!r}: expected classes of taxonomy {taxonomy.name}: "
            f"{', '.join(taxonomy.names)}"
        )
    critical = names or _CRITICAL
    return [label.id for label in taxonomy.classes if label.name in critical]


def decide(
    challenger: Int64Array,
    champion: Int64Array | None,
    taxonomy: Taxonomy,
    config: GateConfig,
    groups: Sequence[str],
) -> Decision:
    """Compares two networks over the same images.

    The interval is a percentile bootstrap, paired: both networks are summed over the same resample.
    It draws groups of images that belong together, such as stretches of a drive, since the images
    of one resemble each other; of a single group, it draws the images. Sources: Efron and
    Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; for groups, Davison and
    Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8.

    Args:
        challenger, champion: confusion matrix of each image, int64 (images, classes, classes).
        groups: name of each image's group.

    Raises:
        UserError: a critical class is not in the taxonomy.
    """
    ids = critical_classes(config, taxonomy)
    total = challenger.sum(axis=0)
    after = iou_by_class(total)
    mean = ConfusionMatrix(total).mean_iou()
    # A group without a known pixel says nothing; a resample of such groups alone has no mean IoU.
    known = challenger.any(axis=(1, 2))
    drawn = list(np.asarray(groups)[known])
    count = len(set(drawn))
    too_few_classes = int((total.sum(axis=1) > 0).sum()) < 2
    if champion is None:
        compared = "reaches" if mean >= config.floor else "is below"
        reason = f"There is no champion; mean IoU {mean:.4f} {compared} the floor of {config.floor}"
        return Decision(
            promoted=mean >= config.floor and not too_few_classes,
            reason=f"{reason}; {ONE_CLASS}." if too_few_classes else f"{reason}.",
            mean_iou=mean,
            groups=count,
            critical={taxonomy.names[i]: (None, _defined(after[i])) for i in ids},
        )

    total_before = champion.sum(axis=0)
    before = iou_by_class(total_before)
    mean_before = ConfusionMatrix(total_before).mean_iou()
    critical = {taxonomy.names[i]: (_defined(before[i]), _defined(after[i])) for i in ids}
    low, high = _interval(
        _by_group(challenger[known], drawn), _by_group(champion[known], drawn), config.confidence
    )
    difference = mean - mean_before
    figures = (
        f"mean IoU {mean:.4f} against {mean_before:.4f}: {difference:+.4f}, "
        f"{config.confidence:.0%} interval {low:+.4f} to {high:+.4f} over {count:,} groups"
    )
    # An undefined IoU of the challenger counts as 0.
    fallen = [
        f"{name} from {old:.4f} to {new or 0.0:.4f}"
        for name, (old, new) in critical.items()
        if old is not None and old - (new or 0.0) > config.tolerance
    ]
    problems = [ONE_CLASS] if too_few_classes else []
    # Negated comparisons: NaN, from images without truth, must not promote.
    if not difference > config.margin:
        problems.append(f"not better by more than {config.margin}")
    if not low > 0:
        problems.append("the interval does not lie above 0")
    if fallen:
        problems.append(f"more than {config.tolerance} lost: {', '.join(fallen)}")
    verdict = "; ".join(problems) if problems else "better, and no critical class falls"
    # Only of those asked for: hardly any test split has all that are critical by default.
    if config.critical and (absent := [taxonomy.names[i] for i in ids if not total[i].any()]):
        verdict += f"; {', '.join(absent)} not compared, since no test image shows it"
    return Decision(
        promoted=not problems,
        reason=f"{figures}; {verdict}.",
        mean_iou=mean,
        champion_mean_iou=mean_before,
        low=low,
        high=high,
        groups=count,
        critical=critical,
    )


def _by_group(counts: Int64Array, groups: Sequence[str]) -> Int64Array:
    """Sums of the matrices of each group (groups, classes, classes); unchanged if there is one."""
    names, index = np.unique(groups, return_inverse=True)
    if len(names) == 1:
        return counts
    sums = np.zeros((len(names), *counts.shape[1:]), np.int64)
    np.add.at(sums, index, counts)
    return sums


def _interval(
    challenger: Int64Array, champion: Int64Array, confidence: float
) -> tuple[float, float]:
    units = len(challenger)
    if not units:
        return float("nan"), float("nan")
    draws = np.random.default_rng(_SEED).multinomial(units, np.full(units, 1 / units), _RESAMPLES)
    new, old = (
        np.nanmean(iou_by_class(np.tensordot(draws, counts, axes=1)), axis=-1)
        for counts in (challenger, champion)
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(new - old, [tail, 1 - tail])
    return float(low), float(high)


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _format(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
