"""Task ``analysis.report``: from a partition of the tables to a page and a panel of examples."""

from __future__ import annotations

import tempfile
from pathlib import Path

from prefect import get_run_logger, task

from flows.artifacts import publish_examples, publish_report
from flows.retries import HOUR_S, RETRIED
from flows.steps import Watch, run_job
from flows.summary import draw_examples
from schemas.storage import absolute, copy, join, writing


@task(name="analysis.report", tags={"duckdb"}, timeout_seconds=HOUR_S, **RETRIED)
def write_report(output: str, predictions: str, partition: str, dataset: str | None) -> str:
    """Writes ``<output>/reports/<partition>.html``; returns its path or URI.

    Args:
        dataset: the predicted dataset; some of its test images are drawn beside the page, as
            ``.png``. None draws no images.
    """
    page = join(absolute(output), "reports", f"{partition}.html")
    with writing(page) as path:
        arguments = [f"--predictions={predictions}", f"--partition={partition}", f"--output={path}"]
        run_job("analysis.report", arguments, Watch(get_run_logger().info))
    publish_report(page)
    if dataset is not None:
        with tempfile.TemporaryDirectory(prefix="lyft-report-") as scratch:
            picture = Path(scratch, "examples.png")
            if draw_examples(dataset, predictions, partition, picture):
                place = f"{page.removesuffix('.html')}.png"
                copy(picture, place)
                publish_examples(picture, place)
    return page
