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

_MODEL = "model"
_WIDTH = 720
_LARGEST = 200_000
"""Size in bytes up to which a picture is stored in Prefect's database."""


def publish_data_card(dataset: str) -> None:
    """Publishes the dataset's card, with its picture, which Prefect cannot load, as a path."""
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


def publish_examples(picture: Path, place: str) -> None:
    """Publishes a panel of input, truth and prediction, embedded if it is small enough.

    Args:
        place: path or URI of the panel at full size.
    """
    from PIL import Image

    panel = Image.open(picture).convert("RGB")
    panel.thumbnail((_WIDTH, panel.height))
    out = io.BytesIO()
    panel.save(out, "JPEG", quality=85)
    about = f"Test images from the worst to the best, in full: {place}"
    if out.tell() <= _LARGEST:
        data = base64.b64encode(out.getvalue()).decode()
        create_image_artifact(f"data:image/jpeg;base64,{data}", "examples", about)
    else:
        create_link_artifact(_link(place), place.rpartition("/")[2], "examples", about)


def publish_report(page: str) -> None:
    """Publishes a link to the report, for browsers on machines that can reach its path or URI."""
    about = f"Report of this run: {page}"
    create_link_artifact(_link(page), page.rpartition("/")[2], "report", about)


def publish_evaluation(report: Path) -> None:
    """Publishes how a model does on another dataset."""
    text = report.read_text(encoding="utf-8")
    create_markdown_artifact(text, "evaluation", "The model on another dataset")


def _link(place: str) -> str:
    return place if is_remote(place) else Path(place).as_uri()


def publish_class_table(summaries: list[ClassSummary], model: str) -> None:
    """Publishes the table of class statistics."""
    create_table_artifact(
        key="class-statistics",
        table=class_rows(summaries),
        description=f"Predicted pixel share and IoU by class, {model}",
    )


def publish_model(model: str, tracking_uri: str) -> None:
    """Publishes the version to predict with, for another run to read with ``model_of``."""
    create_table_artifact(
        key=_MODEL,
        table=[{"model": model, "tracking_uri": tracking_uri}],
        description="Version to predict with",
    )


def model_of(flow_run_id: UUID) -> str:
    """The version that a ``train`` run published; read from Prefect, because runs share no files.

    Raises:
        LookupError: the run published no version.
    """
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]),
                key=ArtifactFilterKey(any_=[_MODEL]),
            )
        )
    if not found:
        raise LookupError(f"flow run {flow_run_id} has no artifact {_MODEL!r}")
    return str(json.loads(str(found[0].data))[0]["model"])


def publish_links(dataset: str, model: str, predictions: str, tracking_uri: str) -> None:
    """Publishes where the dataset, the model and the tables are."""
    create_markdown_artifact(
        key="results",
        markdown="\n".join(
            [
                "| what | where |",
                "| --- | --- |",
                f"| dataset | `{dataset}` |",
                f"| model | `{model}` in `{redact_credentials(tracking_uri)}` |",
                f"| tables | `{predictions}` |",
            ]
        ),
        description="Dataset, model and tables of this run",
    )
