"""Boot program of a Python worker on Flink or Spark: the engine starts ``boot.sh``, which runs it.

Like the boot program of Beam's containers, it fetches the pipeline's options, sets the environment
variables that Beam's worker reads, and becomes that worker.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from beam.runners import worker

_POLL_S = 0.2
_TIMEOUT_S = 60


def process_environment() -> tuple[str, dict[str, str]]:
    """Command and variables of Beam's PROCESS environment, for workers of this installation."""
    here = Path(__file__)
    variables = {"WORKER_PYTHON": sys.executable, "PYTHONPATH": str(here.parents[2])}
    return str(here.with_name("boot.sh")), variables


def main(arguments: Sequence[str]) -> None:
    """Becomes the worker that the engine's command line describes."""
    _end_with_parent()
    worker.prepare()
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="boot.sh", description=__doc__)
    for name in ("id", "provision_endpoint"):
        parser.add_argument(f"--{name}", required=True)
    args, _ = parser.parse_known_args(arguments)
    os.environ.update(_variables(args))
    worker.run()


def _variables(args: argparse.Namespace) -> dict[str, str]:
    import grpc
    from apache_beam.portability.api import (
        beam_provision_api_pb2,
        beam_provision_api_pb2_grpc,
    )
    from google.protobuf import json_format, text_format

    with grpc.insecure_channel(args.provision_endpoint) as channel:
        stub = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        request = beam_provision_api_pb2.GetProvisionInfoRequest()
        info = stub.GetProvisionInfo(
            request, timeout=_TIMEOUT_S, metadata=[("worker_id", args.id)]
        ).info
    variables = {
        "WORKER_ID": args.id,
        "PIPELINE_OPTIONS": json_format.MessageToJson(info.pipeline_options),
        "LOGGING_API_SERVICE_DESCRIPTOR": text_format.MessageToString(info.logging_endpoint),
        "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(info.control_endpoint),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
    }
    if info.status_endpoint.url:
        status = text_format.MessageToString(info.status_endpoint)
        variables["STATUS_API_SERVICE_DESCRIPTOR"] = status
    return variables


def _end_with_parent() -> None:
    """Ends this process when its parent ends; nothing else stops the worker of a killed parent.

    The kernel's parent-death signal would come too early: when the parent's thread ends.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1:])
