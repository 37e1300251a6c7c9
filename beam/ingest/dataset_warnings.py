"""What to look at before training on a dataset: few groups, missing classes, leaks, odd places."""

from __future__ import annotations

from collections.abc import Mapping

from beam.ingest.near_duplicates import RemainingLeaks
from beam.ingest.records import Recipe
from beam.ingest.split_rules import wanted_splits
from schemas.manifest import FEW_GROUPS, SplitInfo
from schemas.stats import PixelStats

_HALF_SHARE = 0.35
"""Share of a class's pixels in its usual half below which it is in the wrong one."""

_COMMON_CLASS = 0.01
"""Share of all pixels below which a class may lie anywhere."""


def group_warnings(splits: Mapping[str, SplitInfo]) -> list[str]:
    """Warns of a test split of few groups."""
    test = splits["test"]
    text = (
        f"test has {test.groups} groups of images that belong together, fewer than {FEW_GROUPS}: "
        "metrics on it say little of other places"
    )
    return [text] if test.records and test.groups < FEW_GROUPS else []


def class_warnings(stats: Mapping[str, PixelStats], recipe: Recipe) -> list[str]:
    """Warns of classes that occur in the dataset but not in every split."""
    total = _sum(stats, recipe)
    warnings = []
    for split in wanted_splits(recipe.config):
        absent = (stats[split].class_pixels == 0) & (total.class_pixels > 0)
        names = [label.name for label in recipe.taxonomy.classes if absent[label.id]]
        if names:
            warnings.append(
                f"{split} has no pixel of {', '.join(names)}: too few groups of images have it, "
                "so a metric of it says nothing; a smaller block_length makes more groups"
            )
    return warnings


def leak_warnings(remaining: RemainingLeaks) -> list[str]:
    """Warns of leaks between splits that stay: the splits were given, or max_leak allows them."""
    warnings = []
    if remaining.pairs:
        warnings.append(
            f"{remaining.pairs:,} pairs of near-duplicates lie in different splits: metrics on "
            f"their {remaining.evaluation:,} evaluation images are too good"
        )
    if remaining.beside:
        warnings.append(
            f"{remaining.beside:,} frames are next to one of another split in their sequence"
        )
    return warnings


def position_warnings(stats: Mapping[str, PixelStats], recipe: Recipe) -> list[str]:
    """Warns of classes in the wrong half of the picture: the masks may use other class ids."""
    warnings = []
    whole = _sum(stats, recipe)
    total = max(1, int(whole.class_pixels.sum()))
    for label in recipe.taxonomy.classes:
        pixels = int(whole.class_pixels[label.id])
        if label.usually is None or pixels / total < _COMMON_CLASS:
            continue
        upper = int(whole.upper_pixels[label.id]) / pixels
        share = upper if label.usually == "upper" else 1 - upper
        if share < _HALF_SHARE:
            warnings.append(
                f"class {label.id} {label.name} should lie in the {label.usually} half of the "
                f"picture, but only {share:.0%} of its pixels do: the masks may use other "
                f"class ids than taxonomy {recipe.taxonomy.name}"
            )
    return warnings


def _sum(stats: Mapping[str, PixelStats], recipe: Recipe) -> PixelStats:
    return sum(stats.values(), PixelStats.zero(len(recipe.taxonomy)))
