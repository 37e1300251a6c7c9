"""Task ``analysis.masks``: writes a partition's masks as PNG files or COCO annotations."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from prefect import get_run_logger, task

from flows.lifecycle.job_process import JobCallbacks, run_job
from flows.lifecycle.retries import HOUR_S, RETRY_OPTIONS
from runtime.storage import absolute, join, local_root
from schemas.layout import STAGING_PREFIX

MaskFiles = Literal["none", "palette", "index", "colour", "coco"]
"""Forms of ``python -m analysis.masks``; ``none`` writes no files."""


@task(name="analysis.masks", tags={"duckdb"}, timeout_seconds=6 * HOUR_S, **RETRY_OPTIONS)
def write_masks(output: str, predictions: str, partition: str, form: MaskFiles) -> str:
    """Writes ``<output>/masks/<partition>/``; returns that folder.

    It is replaced, so that it has no masks of images that are gone, or in another form. If
    ``output`` is a URI, it is below ``outputs`` on this machine.
    """
    folder = Path(join(absolute(local_root(output)), "masks", partition))
    staging = folder.with_name(f"{STAGING_PREFIX}{folder.name}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    arguments = [f"--predictions={predictions}", f"--partition={partition}", f"--form={form}"]
    arguments.append(f"--output={staging}")
    run_job("analysis.masks", arguments, JobCallbacks(get_run_logger().info))
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
    return str(folder)
