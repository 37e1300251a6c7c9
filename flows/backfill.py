"""Flow ``backfill``: many models over many datasets or folders, a few at a time."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Annotated, Any, cast

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows.infer import run_infer
from flows.lifecycle.cancellation import stop_jobs_on_exception
from flows.lifecycle.outcome import with_final_state
from flows.lifecycle.paths import PathOrUri
from flows.lifecycle.progress import report_progress
from flows.lifecycle.retries import HOUR_S, RETRY_OPTIONS
from runtime.errors import UserError, first_line
from runtime.mlflow_store import TRACKING_URI
from runtime.storage import join
from schemas.config import InferConfig

_RANGE = re.compile(r"(models:/[^/@]+/)(\d+)-(\d+)")
_MAX_JOBS = 1000
"""Most jobs in one backfill; a larger number is probably a typing error."""

_MAX_FAILURES_IN_MESSAGE = 3
"""Most failures in the message of the run's state; the table lists all."""


def expand_versions(models: Sequence[str]) -> list[str]:
    """Expands ranges of versions to the versions' URIs, and drops duplicates.

    ``models:/lyft-unet/3-5`` stands for versions 3, 4 and 5; other URIs stay as they are.

    Raises:
        UserError: a range is empty or too long.
    """
    uris: list[str] = []
    for model in models:
        versions = _RANGE.fullmatch(model)
        if versions is None:
            uris.append(model)
            continue
        first, last = int(versions[2]), int(versions[3])
        if not first <= last < first + _MAX_JOBS:
            expected = f"FIRST-LAST with at most {_MAX_JOBS} versions"
            raise UserError(f"models {model!r}: expected {expected}")
        uris += [f"{versions[1]}{number}" for number in range(first, last + 1)]
    return list(dict.fromkeys(uris))


def _run_name() -> str:
    models, datasets, sources = (
        len(flow_run.parameters.get(name, ())) for name in ("models", "datasets", "sources")
    )
    return f"backfill-{models}-models-{datasets + sources}-sources"


@task(
    name="beam.infer",
    task_run_name="{model} over {source_option}",
    tags={"beam"},
    timeout_seconds=6 * HOUR_S,
    **RETRY_OPTIONS,
)
def infer_pair(
    model: str, source_option: str, output: str, config: InferConfig, tracking_uri: str
) -> bool:
    """Runs the job on ``--dataset=…`` or ``--source=…``; returns whether there was work to do."""
    with report_progress("beam.infer") as callbacks:
        result = run_infer(model, [source_option], output, config, tracking_uri, callbacks)
    return not result.up_to_date


@flow(name="backfill", flow_run_name=_run_name)
@with_final_state
def backfill(
    models: Annotated[list[str], Field(min_length=1)],
    datasets: list[PathOrUri] = [],  # noqa: B006 - pydantic copies it, Prefect shows it
    sources: list[PathOrUri] = [],  # noqa: B006
    output: PathOrUri = "outputs",
    config: InferConfig = InferConfig(),
    at_once: Annotated[int, Field(ge=1, le=16)] = 2,
    tracking_uri: str = TRACKING_URI,
) -> list[dict[str, str]]:
    """Predicts with each model over each dataset and source, a few jobs at a time.

    Output that is already published is verified and skipped. If a job fails, the others go on; the
    flow fails at the end and names the failed jobs.

    Args:
        models: MLflow URIs, or ranges of versions such as `models:/lyft-unet/3-7`.
        datasets: Folders of published datasets.
        sources: Folders or URIs of PNGs.
        output: Root of all outputs; the tables are in its folder `predictions`.
        config: How images are predicted and rows are written.
        at_once: Number of jobs that run at the same time; each uses all cores available to it.
        tracking_uri: URI of the MLflow server or store.

    Returns:
        One row for each pair of a model and a dataset or source, with its outcome.

    Raises:
        UserError: there are no pairs or too many, `source_name` is set for more than one dataset or
            source, or a job failed.
    """
    options = [f"--dataset={path}" for path in datasets]
    options += [f"--source={path}" for path in sources]
    pairs = list(itertools.product(expand_versions(models), dict.fromkeys(options)))
    if not 1 <= len(pairs) <= _MAX_JOBS:
        raise UserError(
            f"backfill: expected 1 to {_MAX_JOBS} pairs of a model and a dataset or source, "
            f"found {len(pairs)}"
        )
    if config.source_name and len(options) > 1:
        raise UserError("source_name is for one dataset or source; leave it out to name each")
    rows = []
    runner: ThreadPoolTaskRunner[Any]
    futures: list[PrefectFuture[Any]]
    with ThreadPoolTaskRunner(max_workers=at_once) as runner, stop_jobs_on_exception():
        futures = [
            runner.submit(
                cast(Any, infer_pair),
                {
                    "model": model,
                    "source_option": option,
                    "output": join(output, "predictions"),
                    "config": config,
                    "tracking_uri": tracking_uri,
                },
            )
            for model, option in pairs
        ]
        for (model, option), future in zip(pairs, futures, strict=True):
            future.wait()
            result = future.state.result(raise_on_failure=False)
            is_failed = isinstance(result, BaseException)
            rows.append(
                {
                    "model": model,
                    "over": option.partition("=")[2],
                    "outcome": "failed" if is_failed else "run" if result else "skipped",
                    "what": first_line(result, 1000) if is_failed else "",
                }
            )
    create_table_artifact(rows, "backfill", f"{len(rows)} pairs of a model and a source")
    failed = [row for row in rows if row["outcome"] == "failed"]
    if failed:
        reasons = [f"{row['model']} over {row['over']}: {row['what']}" for row in failed]
        listed = "; ".join(reasons[:_MAX_FAILURES_IN_MESSAGE])
        rest = len(failed) - _MAX_FAILURES_IN_MESSAGE
        more = f"; {rest} more in the table" if rest > 0 else ""
        raise UserError(f"{len(failed)} of {len(rows)} failed: {listed}{more}")
    return rows
