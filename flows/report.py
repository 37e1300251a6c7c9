"""Task ``analysis.report``: from a partition of the tables to a page and a panel of examples."""

from __future__ import annotations

import tempfile
from pathlib import Path

from prefect import get_run_logger, task
from prefect.settings import get_current_settings

from flows.artifacts import publish_examples, publish_report
from flows.retries import HOUR_S, RETRIED
from flows.steps import Watch, run_job
from flows.summary import draw_examples
from schemas.storage import absolute, copy, join, writing


@task(name="analysis.report", tags={"duckdb"}, timeout_seconds=HOUR_S, **RETRIED)
def write_report(
    output: str, predictions: str, partition: str, dataset: str | None, tracking_uri: str
) -> str:
    """Writes ``<output>/reports/<partition>.html``; returns its path or URI.

    Args:
        dataset: the predicted dataset; some of its test images are drawn beside the page, as
            ``.png``. None draws no images.
        tracking_uri: if it is a server's, the page links to it, as it does to Prefect's.
    """
    page = join(absolute(output), "reports", f"{partition}.html")
    with writing(page) as path:
        arguments = [f"--predictions={predictions}", f"--partition={partition}", f"--output={path}"]
        arguments += _servers(tracking_uri)
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


def _servers(tracking_uri: str) -> list[str]:
    """Options with the addresses of MLflow's and Prefect's pages, if there are any to link to."""
    pages = {"mlflow": tracking_uri, "prefect": get_current_settings().ui_url or ""}
    return [
        f"--{name}={address}"
        for name, address in pages.items()
        # A password does not belong into a page that is shared.
        if address.startswith(("http://", "https://")) and "@" not in address
    ]
