"""Task ``analysis.report``: from a partition of the tables to a page and a panel of examples."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from prefect import get_run_logger, task
from prefect.settings import get_current_settings

from flows.lifecycle.artifacts import publish_examples, publish_report
from flows.lifecycle.job_process import Watch, run_job
from flows.lifecycle.retries import HOUR_S, RETRIED
from flows.lifecycle.summary import draw_examples
from runtime.errors import UserError
from runtime.storage import absolute, copy, file_sha256, join, local, read_bytes, sha256, writing
from schemas.published import run_file

_STAMP = re.compile(rb"<!-- from (\w{64}), page (\w{64}), picture (\w{64}|none) -->\n\Z")
"""Last line of a page: hashes of what it was made from, of itself, and of the panel beside it."""

_CODE = (
    *("analysis/*.*", "images/*.py", "runtime/*.py", "schemas/*.py"),
    "flows/lifecycle/summary.py",
)
"""What makes pages and panels."""


@task(name="analysis.report", tags={"duckdb"}, timeout_seconds=HOUR_S, **RETRIED)
def write_report(
    output: str, predictions: str, partition: str, dataset: str | None, tracking_uri: str
) -> str:
    """Writes ``<output>/reports/<partition>.html``; returns its path or URI.

    A page that was made from the same tables, and is whole, stays.

    Args:
        dataset: the predicted dataset; some of its test images are drawn beside the page, as
            ``.png``. None draws no images.
        tracking_uri: if it is a server's, the page links to it, as it does to Prefect's.
    """
    page = join(absolute(output), "reports", f"{partition}.html")
    place = f"{page.removesuffix('.html')}.png"
    servers = _servers(tracking_uri)
    made_from = _digest(run_file(predictions, partition), str(dataset), *servers)
    if (picture := _picture_of(page, place, made_from)) is None:
        with writing(page) as path:
            arguments = [f"--predictions={predictions}", f"--partition={partition}"]
            arguments += [f"--output={path}", *servers]
            run_job("analysis.report", arguments, Watch(get_run_logger().info))
            picture = _draw(dataset, predictions, partition, place)
            # Last: until then, the page is made again.
            stamp = f"<!-- from {made_from}, page {file_sha256(path)}, picture {picture} -->\n"
            with path.open("a", encoding="utf-8") as file:
                file.write(stamp)
    else:
        get_run_logger().info("nothing has changed: the report is of these tables, and whole")
    publish_report(page)
    if picture != "none":
        with local(place) as panel:
            publish_examples(panel, place)
    return page


def _draw(dataset: str | None, predictions: str, partition: str, place: str) -> str:
    """Draws test images; returns the hash of the panel, or ``none`` if there is nothing to draw."""
    if dataset is None:
        return "none"
    with tempfile.TemporaryDirectory(prefix="lyft-report-") as scratch:
        picture = Path(scratch, "examples.png")
        if not draw_examples(dataset, predictions, partition, picture):
            return "none"
        copy(picture, place)
        return file_sha256(picture)


def _picture_of(page: str, place: str, made_from: str) -> str | None:
    """What ``_draw`` returned for the published page; None if it must be made, or made again."""
    try:
        text = read_bytes(page)
        found = _STAMP.search(text)
        if found is None:
            return None
        said, of_page, picture = (one.decode() for one in found.groups())
        whole = sha256(text[: found.start()]) == of_page
        if picture != "none":
            whole &= file_sha256(place) == picture
    except (OSError, UserError):
        return None
    return picture if whole and said == made_from else None


def _digest(run: str, *others: str) -> str:
    """Hash of a run's row, whose file names the checksums of all tables, and of our own code."""
    project = Path(__file__).parents[2]
    files = sorted(path for pattern in _CODE for path in project.glob(pattern))
    code = (file_sha256(path) for path in files)
    return sha256("\0".join([file_sha256(run), *others, *code]).encode())


def _servers(tracking_uri: str) -> list[str]:
    """Options with the addresses of MLflow's and Prefect's pages, if there are any to link to."""
    pages = {"mlflow": tracking_uri, "prefect": get_current_settings().ui_url or ""}
    return [
        f"--{name}={address}"
        for name, address in pages.items()
        # A password does not belong into a page that is shared.
        if address.startswith(("http://", "https://")) and "@" not in address
    ]
