"""The challenge's score against F scores computed from pixels."""

import numpy as np
import pytest

from schemas.challenge import challenge_score, f_score, has_challenge_classes, without_hood
from schemas.classes import VOID, load_taxonomy
from schemas.stats import ConfusionMatrix


def _reference(true: np.ndarray, found: np.ndarray, beta: float) -> float:
    hits = (true & found).sum()
    precision, recall = hits / found.sum(), hits / true.sum()
    return (1 + beta**2) * precision * recall / (beta**2 * precision + recall)


def test_the_challenge_score_from_the_pixels() -> None:
    taxonomy = load_taxonomy("carla-0.8")
    random = np.random.default_rng(0)
    truth = random.integers(0, 13, (60, 80)).astype(np.uint8)
    found = np.where(random.random((60, 80)) < 0.6, truth, 7).astype(np.uint8)
    scored = without_hood(truth, taxonomy)
    # Row 496 of 600 is row 49.6 of 60.
    assert (scored[:50] == truth[:50]).all()
    assert (scored[50:][truth[50:] == 10] == VOID).all()
    assert (truth[50:] == 10).any()

    known = scored != VOID
    vehicles = _reference((scored == 10)[known], (found == 10)[known], 2)
    road = _reference(np.isin(scored, [6, 7])[known], np.isin(found, [6, 7])[known], 0.5)
    score = challenge_score(ConfusionMatrix.of(scored, found, 13), taxonomy)
    assert score["challenge_vehicles_f2"] == pytest.approx(vehicles)
    assert score["challenge_road_f05"] == pytest.approx(road)
    assert score["challenge_score"] == pytest.approx((vehicles + road) / 2)


def test_an_absent_class_scores_zero() -> None:
    assert f_score(ConfusionMatrix.zero(3), [1], 2) == 0


def test_which_taxonomies_have_a_score() -> None:
    assert has_challenge_classes(load_taxonomy("carla-0.8"))
    assert not has_challenge_classes(load_taxonomy("carla-0.9"))
