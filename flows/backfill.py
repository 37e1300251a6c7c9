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
from flows.lifecycle.cancellation import ended_together
from flows.lifecycle.outcome import concluded
from flows.lifecycle.paths import Place
from flows.lifecycle.progress import watched
from flows.lifecycle.retries import HOUR_S, RETRIED
from runtime.errors import UserError, first_line
from runtime.mlflow_store import TRACKING_URI
from runtime.storage import join
from schemas.config import InferConfig

_RANGE = re.compile(r"(models:/[^/@]+/)(\d+)-(\d+)")
_MOST = 1000
"""Most runs in one backfill; a larger number is probably a typing error."""

_NAMED = 3
"""Most failures that the run's state names; the table names all."""


def expand(models: Sequence[str]) -> list[str]:
    """Replaces ranges of versions by the URIs of the versions, and drops duplicates.

    ``models:/lyft-unet/3-5`` stands for versions 3, 4 and 5; other URIs stay as they are.

    Raises:
        UserError: a range is empty or too long.
    """
    found: list[str] = []
    for model in models:
        versions = _RANGE.fullmatch(model)
        if versions is None:
            found.append(model)
            continue
        first, last = int(versions[2]), int(versions[3])
        if not first <= last < first + _MOST:
            raise UserError(f"models {model!r}: expected FIRST-LAST with at most {_MOST} versions")
        found += [f"{versions[1]}{number}" for number in range(first, last + 1)]
    return list(dict.fromkeys(found))


def _name() -> str:
    given = flow_run.parameters
    places = [*given.get("datasets", ()), *given.get("sources", ())]
    return f"backfill-{len(given.get('models', ()))}-models-{len(places)}-sources"


@task(
    name="beam.infer",
    task_run_name="{model} over {place}",
    tags={"beam"},
    timeout_seconds=6 * HOUR_S,
    **RETRIED,
)
def infer_one(model: str, place: str, output: str, config: InferConfig, tracking_uri: str) -> bool:
    """Runs the job on ``--dataset=…`` or ``--source=…``; returns whether there was work to do."""
    with watched("beam.infer") as watch:
        return not run_infer(model, [place], output, config, tracking_uri, watch).idle


@flow(name="backfill", flow_run_name=_name)
@concluded
def backfill(
    models: Annotated[list[str], Field(min_length=1)],
    datasets: list[Place] = [],  # noqa: B006 - pydantic copies it, Prefect shows it
    sources: list[Place] = [],  # noqa: B006
    output: Place = "outputs",
    config: InferConfig = InferConfig(),
    at_once: Annotated[int, Field(ge=1, le=16)] = 2,
    tracking_uri: str = TRACKING_URI,
) -> list[dict[str, str]]:
    """Predicts with each model over each dataset and folder, a few jobs at a time.

    Output that is already published is verified and skipped. If a job fails, the others go on; the
    flow then fails at the end and names the jobs that failed.

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
    places = [*(f"--dataset={one}" for one in datasets), *(f"--source={one}" for one in sources)]
    pairs = list(itertools.product(expand(models), dict.fromkeys(places)))
    if not 1 <= len(pairs) <= _MOST:
        raise UserError(
            f"backfill: expected 1 to {_MOST} pairs of a model and a dataset or source, "
            f"found {len(pairs)}"
        )
    if config.source_name and len(places) > 1:
        raise UserError("source_name is for one dataset or source; leave it out to name each")
    rows = []
    runner: ThreadPoolTaskRunner[Any]
    futures: list[PrefectFuture[Any]]
    with ThreadPoolTaskRunner(max_workers=at_once) as runner, ended_together():
        futures = [
            runner.submit(
                cast(Any, infer_one),
                {
                    "model": model,
                    "place": place,
                    "output": join(output, "predictions"),
                    "config": config,
                    "tracking_uri": tracking_uri,
                },
            )
            for model, place in pairs
        ]
        for (model, place), future in zip(pairs, futures, strict=True):
            future.wait()
            found = future.state.result(raise_on_failure=False)
            failed = isinstance(found, BaseException)
            rows.append(
                {
                    "model": model,
                    "over": place.partition("=")[2],
                    "outcome": "failed" if failed else "run" if found else "skipped",
                    "what": first_line(found, 1000) if failed else "",
                }
            )
    create_table_artifact(rows, "backfill", f"{len(rows)} pairs of a model and a source")
    broken = [row for row in rows if row["outcome"] == "failed"]
    if broken:
        why = [f"{one['model']} over {one['over']}: {one['what']}" for one in broken[:_NAMED]]
        more = f"; {len(broken) - _NAMED} more in the table" if len(broken) > _NAMED else ""
        raise UserError(f"{len(broken)} of {len(rows)} failed: {'; '.join(why)}{more}")
    return rows
