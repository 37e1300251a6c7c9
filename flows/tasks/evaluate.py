"""Task ``model.evaluate``: evaluates the model on another dataset."""

from __future__ import annotations

import tempfile
from pathlib import Path

from prefect import task

from flows.lifecycle.artifacts import publish_evaluation
from flows.lifecycle.job_process import run_job
from flows.lifecycle.progress import report_progress
from flows.lifecycle.retries import HOUR_S, RETRY_OPTIONS


@task(
    name="model.evaluate",
    tags={"keras"},
    timeout_seconds=6 * HOUR_S,
    **RETRY_OPTIONS,
)
def evaluate_model(model: str, dataset: str, tracking_uri: str) -> str:
    """Evaluates a model on all images of a dataset; returns the URI of its tables in MLflow."""
    with tempfile.TemporaryDirectory(prefix="lyft-evaluate-") as scratch:
        report = Path(scratch, "evaluation.md")
        arguments = [
            f"--model={model}",
            f"--dataset={dataset}",
            f"--tracking_uri={tracking_uri}",
            "--split=all",
            f"--report={report}",
        ]
        with report_progress("model.evaluate") as callbacks:
            tables = run_job("model.evaluate", arguments, callbacks).output
        publish_evaluation(report)
    return tables
