"""Whether masks hold another numbering of the same classes than the one they are read by.

Ids that fit two numberings are told apart by the classes' shares and by where they lie. A taxonomy
says of its classes which share of a dataset each usually has, and how much of it is in the upper
half (``expected``); of two readings, the right one is whose expectations are close to the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from runtime.command_line import log
from runtime.errors import UserError
from schemas.classes import Taxonomy, builtin_taxonomies, load_taxonomy
from schemas.manifest import Manifest
from schemas.stats import Float64Array, PixelStats

MARGIN = 1.0
"""Nats by which another reading must be closer to the data than the taxonomy in use."""

CLOSE = 1.5
"""Nats within which the other reading itself must be: no reading is close to odd data."""

MIN_IMAGES = 8
"""With fewer images a mix-up is only warned of: a few frames may show anything."""

_COMMON_CLASSES = 3
_COMMON = 0.01
"""Fewer classes with this share of the pixels say nothing about a numbering: empty masks, say."""

_RARE = 0.001
"""Share added to each class in each half, so that what is not expected is rare, not impossible."""

_IMPOSSIBLE = 1e-9
"""Share of a value that a numbering does not have."""


@dataclass(frozen=True)
class Reading:
    """A way to read the values of masks.

    Attributes:
        luma: the values are the brightness of masks that hold the id in the red channel alone, as
            a conversion to greyscale makes them: ``round(0.299 * id)`` (ITU-R BT.601).
    """

    taxonomy: Taxonomy
    luma: bool = False

    def expected_shares(self) -> Float64Array:
        """Expected share of all pixels by value and half (upper, lower), float64 (256, 2)."""
        shares = np.zeros((256, 2))
        for label in self.taxonomy.classes:
            share, upper = (
                (label.expected.share, label.expected.upper) if label.expected else (0.0, 0.0)
            )
            value = round(0.299 * label.id) if self.luma else label.id
            shares[value] += (share * upper + _RARE, share * (1 - upper) + _RARE)
        return np.asarray(np.maximum(shares / shares.sum(), _IMPOSSIBLE))


@dataclass(frozen=True)
class MixUp:
    """A reading that is closer to the data than the taxonomy in use; distances are in nats."""

    reading: Reading
    distance: float
    distance_in_use: float


def distance(stats: PixelStats, reading: Reading) -> float:
    """How far a dataset is from what a reading expects of it, in nats; 0 if there are no pixels.

    It is the Kullback-Leibler divergence of the shares that are found from those expected, over
    classes and halves of the picture. Source: Cover and Thomas, "Elements of Information Theory",
    2nd edition, section 2.3.
    """
    halves = np.stack([stats.upper_pixels, stats.class_pixels - stats.upper_pixels], axis=1)
    found = halves / max(1, halves.sum())
    expected = reading.expected_shares()[: len(found)]
    there = found > 0
    return float((found[there] * np.log(found[there] / expected[there])).sum())


def find_mix_up(stats: PixelStats, taxonomy: Taxonomy) -> MixUp | None:
    """The reading that the data are clearly closer to than to ``taxonomy``, if there is one.

    Args:
        stats: of the whole dataset, by class id of ``taxonomy``.
    """
    common = stats.class_pixels >= _COMMON * max(1, stats.class_pixels.sum())
    if not can_be_compared(taxonomy) or common.sum() < _COMMON_CLASSES:
        return None
    in_use = distance(stats, Reading(taxonomy))
    if in_use < MARGIN:
        # No distance is below 0, so the other taxonomies need not be read.
        return None
    best = min(other_readings(taxonomy), key=lambda one: distance(stats, one))
    closest = distance(stats, best)
    if closest > CLOSE or in_use - closest < MARGIN:
        return None
    return MixUp(best, closest, in_use)


def can_be_compared(taxonomy: Taxonomy) -> bool:
    """Whether a taxonomy has expectations, and its class ids are the values of raw masks."""
    if any(raw != target for raw, target in taxonomy.remap.items()):
        return False
    return any(label.expected for label in taxonomy.classes)


def other_readings(taxonomy: Taxonomy) -> Sequence[Reading]:
    """What masks that are read by ``taxonomy`` may hold instead."""
    others = [Reading(one) for one in _numberings() if one.names != taxonomy.names]
    return [*others, *(Reading(one, luma=True) for one in _numberings())]


@cache
def _numberings() -> list[Taxonomy]:
    known = (load_taxonomy(name) for name in builtin_taxonomies())
    return [one for one in known if can_be_compared(one)]


def check_numbering(manifest: Manifest) -> None:
    """Refuses a dataset whose masks seem to hold another numbering, or warns if it is small.

    Raises:
        UserError: names the taxonomy in use, the other reading and the option that fixes it.
    """
    taxonomy = manifest.taxonomy
    parts = (PixelStats.from_json(shard.stats) for shard in manifest.shards)
    mix_up = find_mix_up(sum(parts, PixelStats.zero(len(taxonomy))), taxonomy)
    if mix_up is None:
        return
    text = describe(mix_up, taxonomy)
    if manifest.config.taxonomy_check == "off":
        log(f"warning: {text}")
    elif manifest.records < MIN_IMAGES:
        log(f"warning: {text} ({manifest.records} images are too few to be sure)")
    else:
        raise UserError(f"{text}, or --taxonomy_check off to go on; nothing was published")


def describe(mix_up: MixUp, taxonomy: Taxonomy) -> str:
    """Says in one line what the masks look like, why, and which option reads them so."""
    other = mix_up.reading.taxonomy.name
    measured = (
        "by the classes' shares and places their distance is "
        f"{mix_up.distance:.1f} nats, and {mix_up.distance_in_use:.1f} from {taxonomy.name}"
    )
    if not mix_up.reading.luma:
        return (
            f"the masks were read as taxonomy {taxonomy.name} but look like {other} ({measured}): "
            f"pass --taxonomy {other}"
        )
    same = "" if other == taxonomy.name else f" --taxonomy {other}"
    return (
        f"the masks were read as taxonomy {taxonomy.name} but look like the luma of {other}, "
        f"ids in the red channel that were converted to greyscale ({measured}), which merges "
        f"classes: ingest the original RGB masks with --mask_encoding red{same}"
    )
