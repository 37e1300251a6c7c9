"""Many models over many sources: real jobs on Prefect's ephemeral server."""

import json
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest
from jobs import RETRIED, ROOT
from operated import processes
from servers import PATIENCE_S, stop, until
from whole_flow import ephemeral

FLOW = """
import json, sys
from prefect.client.orchestration import get_client
from flows.backfill import backfill

found = []
for given in json.load(sys.stdin):
    state = backfill(**given, return_state=True)
    found.append([state.name, state.message])
with get_client(sync_client=True) as client:
    tables = client.request("POST", "/artifacts/filter", json={"sort": "CREATED_DESC"}).json()
tables = [json.loads(one["data"]) for one in tables if one["key"] == "backfill"]
print(json.dumps([found, tables[::-1]]))
"""


# Slow: seven jobs under a server of its own.
def test_backfill_continues_after_failures_and_skips_published_output(
    scenes: Path, dataset: Path, trained, prefect_home: Path, tmp_path: Path
) -> None:
    base = {"output": str(tmp_path), "tracking_uri": trained.tracking_uri, "at_once": 2}
    runs = [
        {**base, "models": [trained.model], "datasets": [str(dataset)]},
        {
            **base,
            "models": ["models:/small-unet/1-2"],
            "datasets": [str(dataset)],
            "sources": [str(scenes), str(tmp_path / "none")],
        },
        {**base, "models": [trained.model]},
        {**base, "models": []},
        {**base, "models": [trained.model], "sources": ["a"], "at_once": 99},
    ]
    done = subprocess.run(
        [sys.executable, "-c", FLOW],
        cwd=ROOT,
        env=ephemeral(tmp_path, prefect_home),
        input=json.dumps(runs),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, tables = json.loads(done.stdout.splitlines()[-1])

    assert trained.model == "models:/small-unet/1"
    (one, two), places = (
        ("models:/small-unet/1", "models:/small-unet/2"),
        [
            str(dataset),
            str(scenes),
            str(tmp_path / "none"),
        ],
    )
    assert found[0][0] == "Completed"
    assert tables[0] == [{"model": one, "over": places[0], "outcome": "run", "what": ""}]
    outcomes = [(row["model"], row["over"], row["outcome"]) for row in tables[1]]
    assert outcomes == [
        (one, places[0], "skipped"),
        (one, places[1], "run"),
        (one, places[2], "failed"),
        *((two, place, "failed") for place in places),
    ]
    why = [row["what"] for row in tables[1]]
    assert why[:2] == ["", ""]
    assert "there is no such folder" in why[2]
    assert "cannot be found" in why[3]
    name, message = found[1]
    assert name == "Failed"
    failed = [f"{row['model']} over {row['over']}: {row['what']}" for row in tables[1][2:5]]
    assert message == f"error: 4 of 6 failed: {'; '.join(failed)}; 1 more in the table"
    assert not RETRIED.search(done.stderr)
    masks = f"FROM '{tmp_path}/predictions/masks/**/*.parquet' SELECT count(*)"
    assert duckdb.sql(masks).fetchall() == [(80,)]

    assert "expected 1 to 1000 pairs of a model and a dataset or source, found 0" in found[2][1]
    for (state, why), field in zip(found[3:], ("models", "at_once"), strict=True):
        assert state == "Failed"
        assert field in why


def test_one_source_name_for_several_sources_is_refused() -> None:
    from flows.backfill import backfill
    from runtime.errors import UserError
    from schemas.config import InferConfig

    with pytest.raises(UserError, match="source_name is for one dataset or source"):
        backfill.fn(["m"], sources=["a", "b"], config=InferConfig(source_name="x"))


STOPPED = """
import sys
import flows.infer
from flows.backfill import backfill
from flows.lifecycle.job_process import run_job

output, *sources = sys.argv[1:]
flows.infer.run_job = lambda _, arguments, callbacks: run_job("silent", [output], callbacks)
backfill(["m"], sources=sources, output=output, at_once=2)
"""


def test_concurrency_is_limited_and_jobs_end_with_the_flow(
    prefect_home: Path, tmp_path: Path
) -> None:
    (tmp_path / "silent.py").write_text("import time\ntime.sleep(3000)\n")
    output = str(tmp_path / "out")
    flow = subprocess.Popen(
        [sys.executable, "-c", STOPPED, output, *"abcd"],
        cwd=ROOT,
        env=ephemeral(tmp_path, prefect_home) | {"PYTHONPATH": f"{ROOT}:{tmp_path}"},
        start_new_session=True,
    )
    try:
        jobs = until(lambda: len(found := processes("silent", output)) >= 2 and found, pause_s=0.2)
        time.sleep(5)
        assert processes("silent", output) == jobs
        assert len(jobs) == 2
        # As the worker does when the run is cancelled; it would wait for 30 seconds.
        flow.terminate()
        assert flow.wait(PATIENCE_S) != 0
        assert not processes("silent", output)
    finally:
        # The flow's own server is left behind.
        stop(flow)
