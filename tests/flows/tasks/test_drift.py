"""Drift of a run: table, warning, event, or the reason why it is unknown."""

import logging
from pathlib import Path
from typing import Any

import pytest

from flows.tasks import drift
from schemas.drift import Drift, Profile

THEN = Profile(images=4, class_pixels={"Roads": 60, "Sky": 40}, mean_confidence=0.8)
SHIFTED = Profile(images=2, class_pixels={"Roads": 9, "Sky": 1}, mean_confidence=0.6)
NOTHING = Profile(images=0, class_pixels={}, mean_confidence=None)


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """Publishes the drift of a profile; returns what was published, by kind."""
    caplog.set_level(logging.INFO)

    def run(now: Profile, then: Profile | None, max_drift: float) -> dict[str, Any]:
        found: dict[str, Any] = {}
        monkeypatch.setattr(drift, "get_run_logger", lambda: logging.getLogger("run"))
        monkeypatch.setattr(drift, "create_table_artifact", lambda *it: found.update(table=it))
        monkeypatch.setattr(drift, "create_markdown_artifact", lambda *it: found.update(text=it))
        monkeypatch.setattr(
            drift, "emit_event", lambda *it, **rest: found.update(event=(*it, rest))
        )
        caplog.clear()
        about = Drift(model="models:/lyft-unet/3", partition="p", now=now, validation=then)
        file = tmp_path / "drift.json"
        file.write_text(about.model_dump_json(), encoding="utf-8")
        drift.publish_drift(file, max_drift)
        found["warnings"] = [one for one in caplog.records if one.levelno >= logging.WARNING]
        return found

    return run


def test_drift_table_shows_both_shares_and_equal_shares_do_not_warn(publish) -> None:
    found = publish(THEN, THEN, 0)
    rows, key, about = found["table"]
    assert (key, about.rpartition(": ")[2]) == ("drift", "distance 0.000")
    assert [tuple(row.values()) for row in rows] == [
        ("Roads", "60.00%", "60.00%", "0.0000"),
        ("Sky", "40.00%", "40.00%", "0.0000"),
        ("all classes", "", "", "0.0000"),
        ("mean confidence", "0.800", "0.800", ""),
    ]
    assert "event" not in found
    assert not found["warnings"]


def test_drift_above_the_threshold_warns_and_emits_the_event(publish) -> None:
    found = publish(SHIFTED, THEN, 0.25)
    name, rest = found["event"]
    assert name == "lyft.drift.exceeded"
    assert rest["resource"]["prefect.resource.id"] == "lyft.model.lyft-unet/3"
    payload = rest["payload"]
    assert payload["distance"] == pytest.approx(0.3)
    assert (payload["class_name"], payload["class_share"]) == ("Roads", 0.9)
    assert (payload["mean_confidence"], payload["validation_mean_confidence"]) == (0.6, 0.8)
    (warning,) = found["warnings"]
    assert "0.300 from those on the validation split of models:/lyft-unet/3" in warning.message

    below = publish(SHIFTED, THEN, 0.31)
    assert "event" not in below
    assert not below["warnings"]
    assert below["table"][0][2]["distance"] == "0.3000"


@pytest.mark.parametrize(
    ("now", "then", "reason"),
    [
        (SHIFTED, None, "registered without figures of its validation split"),
        (NOTHING, THEN, "holds no predicted pixel"),
    ],
)
def test_unknown_drift_is_reported_with_its_reason(now, then, reason, publish) -> None:
    found = publish(now, then, 0)
    assert reason in found["text"][0]
    assert found.keys() == {"text", "warnings"}
    assert not found["warnings"]
