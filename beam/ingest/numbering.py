"""Detects masks whose class ids follow another taxonomy than the one they are read by.

The same ids may be valid in several taxonomies. A taxonomy's ``expected`` says which share of a
dataset each class usually has, and how much of it is in the upper half. The right taxonomy is the
one whose expectations are close to the data.
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
"""With fewer images, a mix-up is a warning, not an error: a few frames may show anything."""

_COMMON_CLASSES = 3
_COMMON = 0.01
"""Fewer classes with this share of the pixels, e.g. in empty masks, allow no verdict."""

_RARE = 0.001
"""Share added to each class in each half, so that an unexpected class is rare, not impossible."""

_IMPOSSIBLE = 1e-9
"""Expected share of a value that is no class of the taxonomy."""


@dataclass(frozen=True)
class Reading:
    """A way to read the values of masks.

    Attributes:
        luma: whether masks with the id in the red channel were converted to greyscale, so that the
            values are ``round(0.299 * id)`` (ITU-R BT.601).
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
    """Distance of a dataset from what a reading expects, in nats; 0 if there are no pixels.

    The Kullback-Leibler divergence of the actual from the expected shares, over classes and halves
    of the picture. Source: Cover and Thomas, "Elements of Information Theory", 2nd edition,
    section 2.3.
    """
    halves = np.stack([stats.upper_pixels, stats.class_pixels - stats.upper_pixels], axis=1)
    shares = halves / max(1, halves.sum())
    present = shares > 0
    actual, expected = shares[present], reading.expected_shares()[: len(shares)][present]
    return float((actual * np.log(actual / expected)).sum())


def find_mix_up(stats: PixelStats, taxonomy: Taxonomy) -> MixUp | None:
    """The reading to which the data are clearly closer than to ``taxonomy``, if there is one.

    Args:
        stats: of the whole dataset, by class id of ``taxonomy``.
    """
    common = stats.class_pixels >= _COMMON * max(1, stats.class_pixels.sum())
    if not can_be_compared(taxonomy) or common.sum() < _COMMON_CLASSES:
        return None
    in_use = distance(stats, Reading(taxonomy))
    if in_use < MARGIN:
        # Distances are at least 0, so no other reading can be closer by the margin.
        return None
    best = min(other_readings(taxonomy), key=lambda reading: distance(stats, reading))
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
    """The readings that may be right instead of ``taxonomy``."""
    others = [Reading(other) for other in _comparable() if other.names != taxonomy.names]
    return [*others, *(Reading(other, luma=True) for other in _comparable())]


@cache
def _comparable() -> list[Taxonomy]:
    return [one for one in map(load_taxonomy, builtin_taxonomies()) if can_be_compared(one)]


def check_numbering(manifest: Manifest) -> None:
    """Refuses a dataset whose masks seem to use another taxonomy; only warns if it is small.

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
    """What the masks look like, why, and which option reads them so, in one line."""
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
