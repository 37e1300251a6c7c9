"""Beam environment whose workers are forks of one process: see ``local_workers``."""

from __future__ import annotations

import contextlib
from typing import Any
from weakref import WeakValueDictionary

from apache_beam.portability.api import endpoints_pb2
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    GrpcWorkerHandler,
    WorkerHandler,
)
from apache_beam.transforms.environments import Environment
from google.protobuf import json_format, text_format

from beam.runners.local_workers import WORKER_DIED, WorkerParent

_URN = "lyft:environment:fork:v1"
_parents: WeakValueDictionary[bytes, WorkerParent] = WeakValueDictionary()


class ForkEnvironment(Environment):
    """Workers are forks of ``parent``, which must live until the pipeline has ended."""

    def __init__(self, parent: WorkerParent) -> None:
        super().__init__(capabilities=(), artifacts=(), resource_hints=None)
        self._payload = str(parent.pid).encode()
        _parents[self._payload] = parent

    def to_runner_api_parameter(self, _context: Any) -> tuple[str, bytes]:
        """URN and payload by which the runner finds the handler."""
        return _URN, self._payload


@WorkerHandler.register_environment(_URN, bytes)
class ForkHandler(GrpcWorkerHandler):
    """The runner's side of one worker, which speaks gRPC with the runner."""

    def __init__(self, payload: bytes, *runner: Any) -> None:
        super().__init__(*runner)
        self._parent = _parents[payload]

    def start_worker(self) -> None:
        """Asks for a fork; variables as in Beam's ``SubprocessSdkWorker``, but for its log."""
        control = endpoints_pb2.ApiServiceDescriptor(url=self.control_address)
        options = self.provision_info.provision_info.pipeline_options
        variables = {
            "WORKER_ID": self.worker_id,
            "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(control),
            "PIPELINE_OPTIONS": json_format.MessageToJson(options),
        }
        self._parent.fork(variables, self._give_up)

    def stop_worker(self) -> None:
        """Nothing: workers end when the runner closes their connection."""

    def _give_up(self) -> None:
        """Ends the runner's two waits for this worker: for its answer, and for its output."""
        self.control_conn.abort(RuntimeError(WORKER_DIED))
        # Fails if the connection has broken, of which the runner knows.
        with contextlib.suppress(Exception):
            self.data_conn.close()
