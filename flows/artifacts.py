"""Artifacts of a flow run: the class table and the links, on the run's page in Prefect."""

from __future__ import annotations

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.summary import ClassSummary, class_rows


def publish_class_table(summaries: list[ClassSummary], model: str) -> None:
    """The table of class statistics."""
    create_table_artifact(
        key="class-statistics",
        table=class_rows(summaries),
        description=f"Predicted pixel share and IoU by class, {model}",
    )


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
