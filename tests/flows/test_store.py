"""The whole flow with all paths on a real store, which goes away in the middle of the run."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

from jobs import QUICK, RETRIED, SMALL, Job
from servers import until
from store import Store
from whole_flow import FLOW, ephemeral

from analysis.tables import connect
from flows.doctor import check_store
from flows.lifecycle.summary import draw_examples
from flows.plan import plan
from schemas.config import GateConfig, TrainConfig
from schemas.manifest import load_manifest


def _flow(source: str, output: str, folder: Path, prefect_home: Path) -> subprocess.Popen[str]:
    script = FLOW.replace("sqlite:///{output}", f"sqlite:///{folder}")
    process = subprocess.Popen(
        [sys.executable, "-c", script, source, output],
        # Files that cannot be on a store go to `outputs` in the working folder.
        cwd=folder,
        env=ephemeral(folder, prefect_home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps([SMALL.model_dump(), QUICK]))
    process.stdin.close()
    process.stdin = None
    return process


# Slow: a whole run with a server of its own, whose store goes away for a while.
def test_the_whole_flow(
    bucket: Store, scenes: Path, dataset: Path, prefect_home: Path, tmp_path, monkeypatch
) -> None:
    source, output = bucket.put(scenes, "raw"), bucket.uri("pipeline")
    lines: list[str] = []
    # The output ends with a slash, as people write folders.
    with _flow(source, f"{output}/", tmp_path, prefect_home) as process:
        reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()))
        reader.start()
        # Until the job has staged something, it would wait only ten seconds for the store.
        while not bucket.has_staged("pipeline"):
            assert process.poll() is None, "".join(lines)
            time.sleep(0.02)
        bucket.stop()
        until(
            lambda: any("the store does not answer" in line for line in lines) or process.poll(),
            "a note that the store does not answer",
        )
        bucket.start()
        code = process.wait()
        reader.join()
    log = "".join(lines)
    assert code == 0, log
    # The job itself waited: no task was retried.
    assert not RETRIED.search(log)
    results = json.loads(next(line for line in lines if line.startswith("{")))

    found = load_manifest(results["dataset"])
    assert results["dataset"] == f"{output}/datasets/small/{dataset.name}"
    assert found.shards == load_manifest(dataset).shards
    assert results["predictions"] == f"{output}/predictions"
    with connect(results["predictions"]) as database:
        counts = "SELECT images_read, images_predicted, images_rejected, source_uri FROM runs"
        assert database.sql(counts).fetchall() == [(40, 40, 0, results["dataset"])]
        ((rows, images),) = database.sql(
            "SELECT count(*), count(DISTINCT image_id) FROM class_stats"
        ).fetchall()
    assert (rows, images) == (40 * 13, 40)
    assert len(results["artifacts"]["class-statistics"]) == 13
    assert draw_examples(
        results["dataset"], results["predictions"], results["partition"], tmp_path / "examples.png"
    )
    # No hidden file is left on the store, and only notes and a cache on this machine.
    assert not [path for path in bucket.files("pipeline") if "/." in f"/{path}"]
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == {
        "durations.json",
        "training",
    }

    monkeypatch.chdir(tmp_path)
    steps = plan(
        source,
        output,
        tracking_uri=f"sqlite:///{tmp_path}/mlflow/mlflow.db",
        ingest_config=SMALL,
        train_config=TrainConfig(**QUICK),
        gate_config=GateConfig(floor=0),
    )
    assert [step.action for step in steps] == ["cached", "cached", "cached"]


def test_doctor_checks_the_store(bucket: Store, job: Job) -> None:
    assert check_store(bucket.uri("outputs")).level == "ok"
    found = check_store("s3://none/outputs")
    assert found.level == "fix"
    assert "there is no bucket 'none'" in found.found
    done = job("flows.plan", f"--source={bucket.uri('none')}", f"--output={bucket.uri('out')}")
    assert done.returncode == 2
    assert "there is no such folder" in done.stderr
