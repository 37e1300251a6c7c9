"""Artifacts of a flow run: tables, cards, pictures and links on the run's page in Prefect."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from uuid import UUID

from prefect import get_client
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
)

from flows.lifecycle.summary import ClassSummary, class_rows
from runtime.errors import redact_credentials
from runtime.storage import absolute, is_remote, join, read_bytes

_MODEL_KEY = "model"
_THUMBNAIL_WIDTH = 720
_MAX_EMBEDDED_BYTES = 200_000
"""Largest picture that is stored in Prefect's database; for a larger one, a link is."""


def publish_data_card(dataset: str) -> None:
    """Publishes the dataset's card; the path of its picture replaces it: Prefect loads no files."""
    folder = absolute(dataset)
    try:
        card = read_bytes(join(folder, "card.md")).decode()
    except FileNotFoundError:
        return
    lines = [
        f"Picture: `{join(folder, 'card.png')}`" if line.startswith("![") else line
        for line in card.splitlines()
    ]
    create_markdown_artifact("\n".join(lines), "data-card", f"Data card of {folder}")


def publish_decision(file: Path) -> None:
    """Publishes the gate's decision, if the training wrote one."""
    if file.is_file():
        text = file.read_text(encoding="utf-8")
        create_markdown_artifact(text, "gate-decision", "Whether the version became champion")


def publish_examples(picture: Path, location: str) -> None:
    """Publishes a panel of input, truth and prediction, embedded if it is small enough.

    Args:
        location: path or URI of the panel at full size.
    """
    from PIL import Image

    panel = Image.open(picture).convert("RGB")
    panel.thumbnail((_THUMBNAIL_WIDTH, panel.height))
    jpeg = io.BytesIO()
    panel.save(jpeg, "JPEG", quality=85)
    description = f"Test images from the worst to the best, in full: {location}"
    if jpeg.tell() <= _MAX_EMBEDDED_BYTES:
        data = base64.b64encode(jpeg.getvalue()).decode()
        create_image_artifact(f"data:image/jpeg;base64,{data}", "examples", description)
    else:
        _publish_link(location, "examples", description)


def publish_report(page: str) -> None:
    """Publishes a link to the report, for browsers on machines that can reach its path or URI."""
    _publish_link(page, "report", f"Report of this run: {page}")


def publish_evaluation(report: Path) -> None:
    """Publishes a model's metrics on another dataset."""
    text = report.read_text(encoding="utf-8")
    create_markdown_artifact(text, "evaluation", "The model on another dataset")


def _publish_link(location: str, key: str, description: str) -> None:
    uri = location if is_remote(location) else Path(location).as_uri()
    create_link_artifact(uri, location.rpartition("/")[2], key, description)


def publish_class_table(summaries: list[ClassSummary], model: str) -> None:
    """Publishes the table of class statistics."""
    create_table_artifact(
        key="class-statistics",
        table=class_rows(summaries),
        description=f"Predicted pixel share and IoU by class, {model}",
    )


def publish_model(model: str, tracking_uri: str) -> None:
    """Publishes the version to predict with, for another run to read with ``published_model``."""
    create_table_artifact(
        key=_MODEL_KEY,
        table=[{"model": model, "tracking_uri": tracking_uri}],
        description="Version to predict with",
    )


def published_model(flow_run_id: UUID) -> str:
    """The model version that a ``train`` run published, read from Prefect: runs share no files.

    Raises:
        LookupError: the run published no version.
    """
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]),
                key=ArtifactFilterKey(any_=[_MODEL_KEY]),
            )
        )
    if not artifacts:
        raise LookupError(f"flow run {flow_run_id} has no artifact {_MODEL_KEY!r}")
    return str(json.loads(str(artifacts[0].data))[0]["model"])


def publish_links(dataset: str, model: str, predictions: str, tracking_uri: str) -> None:
    """Publishes where the dataset, the model and the tables are."""
    lines = [
        "| what | where |",
        "| --- | --- |",
        f"| dataset | `{dataset}` |",
        f"| model | `{model}` in `{redact_credentials(tracking_uri)}` |",
        f"| tables | `{predictions}` |",
    ]
    create_markdown_artifact("\n".join(lines), "results", "Dataset, model and tables of this run")
