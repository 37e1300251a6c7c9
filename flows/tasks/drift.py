"""Drift of a run's predictions: a table on the run's page, and an event above the threshold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.events import emit_event
from pydantic import Field

from schemas.drift import Drift, Profile

MaxDrift = Annotated[float, Field(ge=0, le=1)]
"""Threshold of the total variation distance between the class shares."""

MAX_DRIFT = 0.15
"""More than twice the distance of other splits of the same drive, see docs/operate.md."""

EVENT = "lyft.drift.exceeded"
"""Name of the event; its resource is the model."""

_KEY = "drift"


def publish_drift(file: Path, max_drift: float) -> None:
    """Publishes what ``beam.infer --drift`` wrote; warns and emits the event above ``max_drift``.

    A run never fails for its drift.
    """
    drift = Drift.model_validate_json(file.read_bytes())
    distance = drift.distance
    if distance is None:
        reason = _reason_unknown(drift)
        create_markdown_artifact(f"Drift is not known: {reason}.", _KEY, _describe(drift))
        get_run_logger().info("drift is not known: %s", reason)
        return
    create_table_artifact(_table_rows(drift), _KEY, f"{_describe(drift)}: distance {distance:.3f}")
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
        payload=_event_payload(drift, max_drift),
    )


def _table_rows(drift: Drift) -> list[dict[str, str]]:
    """A row per class, then the sum of the distances and the confidences."""
    cells = [
        (name, f"{now:.2%}", f"{then:.2%}", f"{abs(now - then) / 2:.4f}")
        for name, now, then in drift.differences()
    ]
    cells.append(("all classes", "", "", f"{drift.distance or 0:.4f}"))
    cells.append(("mean confidence", _confidence(drift.now), _confidence(drift.validation), ""))
    columns = ("class", "share now", "share in validation", "distance")
    return [dict(zip(columns, row, strict=True)) for row in cells]


def _event_payload(drift: Drift, max_drift: float) -> dict[str, object]:
    """The figures, and the class whose share has changed most."""
    name, now, then = max(drift.differences(), key=lambda shares: abs(shares[1] - shares[2]))
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


def _confidence(profile: Profile | None) -> str:
    if profile is None or profile.mean_confidence is None:
        return ""
    return f"{profile.mean_confidence:.3f}"


def _describe(drift: Drift) -> str:
    return f"Predictions of {drift.partition} beside the validation split of {drift.model}"


def _reason_unknown(drift: Drift) -> str:
    if drift.validation is None:
        return (
            f"{drift.model} was registered without figures of its validation split, as versions "
            "before this check were; a new training records them"
        )
    return f"{drift.partition} holds no predicted pixel"
