"""The score of the Lyft Udacity challenge: F2 of vehicles and F0.5 of road, and their mean.

Its rules: road lines count as road, and the hood of the car itself is left out of the vehicles.
The F scores are taken over the pixels of all images together.
"""

from __future__ import annotations

import numpy as np

from schemas.classes import VOID, Taxonomy, UInt8Array
from schemas.stats import ConfusionMatrix

HOOD_TOP = 496 / 600
"""Where the car's hood begins, as a fraction of the height: row 496 of the challenge's 600."""

_VEHICLES, _ROAD = ("Vehicles",), ("Roads", "RoadLines")


def has_challenge_classes(taxonomy: Taxonomy) -> bool:
    """Whether a taxonomy has the classes that the challenge scores."""
    return {"Vehicles", "Roads"} <= set(taxonomy.names)


def without_hood(truth: UInt8Array, taxonomy: Taxonomy) -> UInt8Array:
    """A copy of a mask (height, width) in which vehicles on the hood's rows are void."""
    top = round(HOOD_TOP * truth.shape[0])
    scored = truth.copy()
    hood = scored[top:]
    hood[hood == taxonomy.names.index("Vehicles")] = VOID
    return scored


def challenge_score(matrix: ConfusionMatrix, taxonomy: Taxonomy) -> dict[str, float]:
    """``challenge_vehicles_f2``, ``challenge_road_f05`` and their mean, ``challenge_score``.

    Args:
        matrix: computed from truths that went through ``without_hood``.
    """
    vehicles = f_score(matrix, _ids(taxonomy, _VEHICLES), beta=2)
    road = f_score(matrix, _ids(taxonomy, _ROAD), beta=0.5)
    return {
        "challenge_vehicles_f2": vehicles,
        "challenge_road_f05": road,
        "challenge_score": (vehicles + road) / 2,
    }


def f_score(matrix: ConfusionMatrix, class_ids: list[int], beta: float) -> float:
    """F_beta of a group of classes as one: (1 + b2) P R / (b2 P + R); 0 without true positives."""
    hits = int(matrix.counts[np.ix_(class_ids, class_ids)].sum())
    true = int(matrix.counts[class_ids].sum())
    predicted = int(matrix.counts[:, class_ids].sum())
    weight = beta * beta
    total = weight * true + predicted
    return (1 + weight) * hits / total if total else 0.0


def _ids(taxonomy: Taxonomy, names: tuple[str, ...]) -> list[int]:
    return [label.id for label in taxonomy.classes if label.name in names]
