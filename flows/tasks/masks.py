"""Task ``analysis.masks``: a partition's masks as files, for those who do not read Parquet."""

from __future__ import annotations

from typing import Literal

from prefect import get_run_logger, task

from flows.lifecycle.job_process import Watch, run_job
from flows.lifecycle.retries import HOUR_S, RETRIED
from runtime.storage import absolute, join, local_root

MaskFiles = Literal["none", "palette", "index", "colour", "coco"]
"""Forms of ``python -m analysis.masks``; ``none`` writes no files."""


@task(name="analysis.masks", tags={"duckdb"}, timeout_seconds=6 * HOUR_S, **RETRIED)
def write_masks(output: str, predictions: str, partition: str, form: MaskFiles) -> str:
    """Writes ``<output>/masks/<partition>/``; returns that folder.

    It is on this machine, below ``outputs``, if ``output`` is a URI.
    """
    folder = join(absolute(local_root(output)), "masks", partition)
    arguments = [f"--predictions={predictions}", f"--partition={partition}", f"--form={form}"]
    return run_job(
        "analysis.masks", [*arguments, f"--output={folder}"], Watch(get_run_logger().info)
    ).result
