"""Artifacts of a flow run: the class table and the links, on the run's page in Prefect."""

from __future__ import annotations

import json
from uuid import UUID

from prefect import get_client
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
)

from flows.summary import ClassSummary, class_rows

_MODEL = "model"


def publish_class_table(summaries: list[ClassSummary], model: str) -> None:
    """The table of class statistics."""
    create_table_artifact(
        key="class-statistics",
        table=class_rows(summaries),
        description=f"Predicted pixel share and IoU by class, {model}",
    )


def publish_model(model: str, tracking_uri: str) -> None:
    """The version to predict with; ``model_of`` reads it where another run asked for it."""
    create_table_artifact(
        key=_MODEL,
        table=[{"model": model, "tracking_uri": tracking_uri}],
        description="Version to predict with",
    )


def model_of(flow_run_id: UUID) -> str:
    """The version that a ``train`` run ended with, asked of Prefect: runs share no files.

    Raises:
        LookupError: the run published none.
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
    """Where everything is."""
    create_markdown_artifact(
        key="results",
        markdown="\n".join(
            [
                "| what | where |",
                "| --- | --- |",
                f"| dataset | `{dataset}` |",
                f"| model | `{model}` in `{tracking_uri}` |",
                f"| tables | `{predictions}` |",
            ]
        ),
        description="Dataset, model and tables of this run",
    )
