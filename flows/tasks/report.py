"""Task ``analysis.report``: writes a partition's HTML report and a panel of example images."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from prefect import get_run_logger, task
from prefect.settings import get_current_settings

from flows.lifecycle.artifacts import publish_examples, publish_report
from flows.lifecycle.job_process import JobCallbacks, run_job
from flows.lifecycle.retries import HOUR_S, RETRY_OPTIONS
from flows.lifecycle.summary import draw_examples
from runtime.errors import UserError
from runtime.storage import absolute, copy, file_sha256, join, local, read_bytes, sha256, writing
from schemas.published import run_file

_STAMP = re.compile(rb"<!-- from (\w{64}), page (\w{64}), picture (\w{64}|none) -->\n\Z")
"""Last line of a page: hashes of its inputs, of the page itself, and of the panel beside it."""

_CODE = (
    *("analysis/*.*", "images/*.py", "runtime/*.py", "schemas/*.py"),
    "flows/lifecycle/summary.py",
)
"""Files that decide the content of pages and panels."""


@task(name="analysis.report", tags={"duckdb"}, timeout_seconds=HOUR_S, **RETRY_OPTIONS)
def write_report(
    output: str, predictions: str, partition: str, dataset: str | None, tracking_uri: str
) -> str:
    """Writes ``<output>/reports/<partition>.html``; returns its path or URI.

    A page of the same inputs that is intact is kept.

    Args:
        dataset: the predicted dataset; some of its test images are drawn beside the page, as
            ``.png``. None draws no images.
        tracking_uri: the page links to it if it is a server's.
    """
    page = join(absolute(output), "reports", f"{partition}.html")
    panel = f"{page.removesuffix('.html')}.png"
    links = _link_options(tracking_uri)
    inputs = _digest_inputs(run_file(predictions, partition), str(dataset), *links)
    if (panel_hash := _verified_panel_hash(page, panel, inputs)) is None:
        with writing(page) as path:
            arguments = [f"--predictions={predictions}", f"--partition={partition}"]
            arguments += [f"--output={path}", *links]
            run_job("analysis.report", arguments, JobCallbacks(get_run_logger().info))
            panel_hash = _draw_panel(dataset, predictions, partition, panel)
            # Written last: a page without this line is made again.
            stamp = f"<!-- from {inputs}, page {file_sha256(path)}, picture {panel_hash} -->\n"
            with path.open("a", encoding="utf-8") as file:
                file.write(stamp)
    else:
        get_run_logger().info("nothing has changed: the report is of these tables, and whole")
    publish_report(page)
    if panel_hash != "none":
        with local(panel) as path:
            publish_examples(path, panel)
    return page


def _draw_panel(dataset: str | None, predictions: str, partition: str, panel: str) -> str:
    """Draws test images; returns the hash of the panel, or ``none`` if there is nothing to draw."""
    if dataset is None:
        return "none"
    with tempfile.TemporaryDirectory(prefix="lyft-report-") as scratch:
        picture = Path(scratch, "examples.png")
        if not draw_examples(dataset, predictions, partition, picture):
            return "none"
        copy(picture, panel)
        return file_sha256(picture)


def _verified_panel_hash(page: str, panel: str, inputs: str) -> str | None:
    """The published panel's hash or ``none``; None if page or panel is stale or damaged."""
    try:
        text = read_bytes(page)
        stamp = _STAMP.search(text)
        if stamp is None:
            return None
        stamped_inputs, page_hash, panel_hash = (group.decode() for group in stamp.groups())
        intact = sha256(text[: stamp.start()]) == page_hash
        if panel_hash != "none":
            intact &= file_sha256(panel) == panel_hash
    except (OSError, UserError):
        return None
    return panel_hash if intact and stamped_inputs == inputs else None


def _digest_inputs(run: str, *options: str) -> str:
    """Hash of the run's file, which lists the checksums of all tables, of options and our code."""
    project = Path(__file__).parents[2]
    files = sorted(path for pattern in _CODE for path in project.glob(pattern))
    code = (file_sha256(path) for path in files)
    return sha256("\0".join([file_sha256(run), *options, *code]).encode())


def _link_options(tracking_uri: str) -> list[str]:
    """Options with the addresses of MLflow's and Prefect's pages that the report can link to."""
    pages = {"mlflow": tracking_uri, "prefect": get_current_settings().ui_url or ""}
    return [
        f"--{name}={address}"
        for name, address in pages.items()
        # An address with a password must not be in a page that is shared.
        if address.startswith(("http://", "https://")) and "@" not in address
    ]
