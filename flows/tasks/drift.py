"""Drift of a run's predictions: a table on the run's page, and an event if it goes too far."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.events import emit_event
from pydantic import Field

from schemas.drift import Drift, Profile

MaxDrift = Annotated[float, Field(ge=0, le=1)]
"""Largest total variation distance of the class shares that is no reason to look."""

MAX_DRIFT = 0.15
"""More than twice what other splits of the same drive came to, see docs/operate.md."""

EVENT = "lyft.drift.exceeded"
"""Name of the event; its resource is the model, its payload ``payload_of``."""

_KEY = "drift"


def publish_drift(file: Path, max_drift: float) -> None:
    """Publishes what ``beam.infer --drift`` wrote; warns and emits the event above ``max_drift``.

    A run never fails for its drift.
    """
    drift = Drift.model_validate_json(file.read_bytes())
    distance = drift.distance
    if distance is None:
        create_markdown_artifact(f"Drift is not known: {_reason(drift)}.", _KEY, _about(drift))
        get_run_logger().info("drift is not known: %s", _reason(drift))
        return
    create_table_artifact(rows_of(drift), _KEY, f"{_about(drift)}: distance {distance:.3f}")
    if distance <= max_drift:
        return
    get_run_logger().warning(
        "drift: the class shares of these predictions are %.3f from those on the validation split "
        "of %s, more than max_drift=%s; the table `drift` of this run shows which",
        *(distance, drift.model, max_drift),
    )
    emit_event(
        EVENT,
        resource={
            "prefect.resource.id": f"lyft.model.{drift.model.removeprefix('models:/')}",
            "prefect.resource.name": drift.model,
        },
        payload=payload_of(drift, max_drift),
    )


def rows_of(drift: Drift) -> list[dict[str, str]]:
    """The table: a row per class, then the sum of the distances and the confidences."""
    rows = [
        _row(name, f"{now:.2%}", f"{then:.2%}", f"{abs(now - then) / 2:.4f}")
        for name, now, then in drift.differences()
    ]
    rows.append(_row("all classes", "", "", f"{drift.distance or 0:.4f}"))
    now, then = (_confidence(one) for one in (drift.now, drift.validation))
    return [*rows, _row("mean confidence", now, then, "")]


def payload_of(drift: Drift, max_drift: float) -> dict[str, object]:
    """What the event carries: the figures, and the class whose share has changed most."""
    name, now, then = max(drift.differences(), key=lambda one: abs(one[1] - one[2]))
    return {
        "model": drift.model,
        "partition": drift.partition,
        "distance": drift.distance,
        "max_drift": max_drift,
        "images": drift.now.images,
        "mean_confidence": drift.now.mean_confidence,
        "validation_mean_confidence": drift.validation and drift.validation.mean_confidence,
        "class_name": name,
        "class_share": now,
        "validation_class_share": then,
    }


def _row(name: str, now: str, then: str, distance: str) -> dict[str, str]:
    return {"class": name, "share now": now, "share in validation": then, "distance": distance}


def _confidence(profile: Profile | None) -> str:
    known = profile is not None and profile.mean_confidence is not None
    return f"{profile.mean_confidence:.3f}" if profile is not None and known else ""


def _about(drift: Drift) -> str:
    return f"Predictions of {drift.partition} beside the validation split of {drift.model}"


def _reason(drift: Drift) -> str:
    if drift.validation is None:
        return (
            f"{drift.model} was registered without figures of its validation split, as versions "
            "before this check were; a new training records them"
        )
    return f"{drift.partition} holds no predicted pixel"
