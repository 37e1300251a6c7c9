"""The distance of two distributions of classes, against values known from its definition."""

import pytest

from schemas.drift import Drift, Profile


def _drift(now: dict[str, int], then: dict[str, int] | None) -> Drift:
    def profile(pixels: dict[str, int]) -> Profile:
        return Profile(images=1, class_pixels=pixels, mean_confidence=0.5 if pixels else None)

    return Drift(model="m", partition="p", now=profile(now), validation=then and profile(then))


@pytest.mark.parametrize(
    ("now", "then", "distance"),
    [
        ({"a": 1, "b": 3}, {"a": 1, "b": 3}, 0),
        # The number of pixels does not matter, nor does the order.
        ({"b": 30, "a": 10}, {"a": 1, "b": 3}, 0),
        ({"a": 4, "b": 0}, {"a": 0, "b": 7}, 1),
        ({"a": 1, "b": 1}, {"a": 1, "b": 3}, 0.25),
        # A class that one of them lacks has share 0 there.
        ({"a": 1}, {"a": 1, "b": 1, "c": 2}, 0.75),
        ({"a": 1, "b": 1}, {"a": 5}, 0.5),
    ],
)
def test_the_distance_is_the_share_that_would_have_to_change(now, then, distance) -> None:
    assert _drift(now, then).distance == pytest.approx(distance, abs=1e-12)
    assert _drift(then, now).distance == pytest.approx(distance, abs=1e-12)
    assert _drift(now, now).distance == 0


@pytest.mark.parametrize(
    ("now", "then"), [({"a": 1}, None), ({}, {"a": 1}), ({"a": 0}, {"a": 1}), ({"a": 1}, {"a": 0})]
)
def test_without_pixels_or_validation_there_is_no_distance(now, then) -> None:
    found = _drift(now, then)
    assert found.distance is None
    assert found.differences() == []
    assert Drift.model_validate_json(found.model_dump_json()) == found
