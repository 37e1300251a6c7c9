"""A script that runs the whole flow and prints what it has left on the server."""

import os
import shutil
from pathlib import Path

from jobs import ROOT


def ephemeral(home: Path, prefect_home: Path) -> dict[str, str]:
    """Environment of a flow that starts Prefect's ephemeral server, with its own home folder."""
    shutil.copytree(prefect_home, home / "prefect")
    others = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    return {
        **others,
        "PREFECT_HOME": str(home / "prefect"),
        "HOME": str(home),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PYTHONPATH": str(ROOT),
    }


FLOW = """
import json, sys
from prefect.client.orchestration import get_client
from flows.ingest_train_infer import ingest_train_infer
from schemas.config import GateConfig, IngestConfig, InferConfig, TrainConfig

source, output, *others = sys.argv[1:]
config, QUICK = json.load(sys.stdin)
given = {
    "tracking_uri": f"sqlite:///{output}/mlflow/mlflow.db",
    "ingest_config": IngestConfig(**config),
    "train_config": TrainConfig(**QUICK),
    "gate_config": GateConfig(floor=0),
}
results = ingest_train_infer(source, output, **given)
with get_client(sync_client=True) as client:
    found = client.request("POST", "/artifacts/filter", json={}).json()
    artifacts = {one["key"]: json.loads(one["data"]) if one["type"] == "table" else one["data"]
                 for one in found}
    runs = client.request("POST", "/flow_runs/filter", json={}).json()
    runs = sorted(run["name"].split("-")[0] + ":" + run["state_name"] for run in runs)
print(json.dumps({**results._asdict(), "artifacts": artifacts, "runs": runs}))
"""

MORE = """
print("AGAIN", file=sys.stderr, flush=True)
print(json.dumps(ingest_train_infer(source, output, **given, mask_files="index")._asdict()))
print("MISTAKE", file=sys.stderr, flush=True)
state = ingest_train_infer(*others, **given, return_state=True)
print(json.dumps([state.name, state.message]))
"""
"""Continues ``FLOW``: the same again, and with another source and output, which fail."""
