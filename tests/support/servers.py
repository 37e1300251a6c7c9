"""Real servers for tests: on 127.0.0.1 and a free port, stopped by their own process id."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest

from runtime.services import stop_process_group

PATIENCE_S = 500
"""Longest wait for an expected event: long enough for a busy machine, but below a test's limit."""

Found = TypeVar("Found")


def until(
    condition: Callable[[], Found], what: str = "what was waited for", pause_s: float = 0.02
) -> Found:
    """Waits until a condition holds; returns the value that it found."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}"
        time.sleep(pause_s)
    return found


def not_fetched(said: str, reason: str) -> NoReturn:
    """Skips the test, but fails it if what was fetched is not what was expected.

    Args:
        said: what the program that fetches has said.
        reason: one line of it, to report.
    """
    if re.search("hash|checksum", said, re.IGNORECASE):
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    command: Sequence[str], health: str, log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts a server and waits until its address answers."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=file,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(health, timeout=20):
                return process
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if process.poll() is not None:
                break
            time.sleep(0.2)
    stop(process)
    raise AssertionError(f"{command[0]} does not answer at {health}:\n{log.read_text()[-4000:]}")


def ask(request: urllib.request.Request) -> Any:
    """Sends a request to Prefect's API; returns the decoded response."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            # The server's database is briefly locked; Prefect's own client retries as well.
            if error.code != 503 or time.monotonic() > deadline:
                raise
        except (urllib.error.URLError, ConnectionError):
            # Refused or cut off: the server may be starting.
            if time.monotonic() > deadline:
                raise
        time.sleep(1)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stops a server and its workers, which are in its process group."""
    stop_process_group(process.pid, 20)
    process.wait()


@contextmanager
def answering(answer: Callable[[str], tuple[int, bytes]], port: int = 0) -> Iterator[str]:
    """Runs a server in this process during a block; yields its address.

    Args:
        answer: maps a path to status and body, whatever the method; requests may overlap.
        port: 0 for any that is free.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, page = answer(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(page)

        do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class Gate:
    """A port of this machine that leads to a server while it is open; else nobody listens there."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._listener: socket.socket | None = None
        self._open: list[socket.socket] = []

    def open(self) -> None:
        """Listens, until it is closed."""
        listener = socket.create_server(("127.0.0.1", self.port))
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def close(self) -> None:
        """Refuses new connections and cuts those that are open, as if the server had died."""
        if self._listener is None:
            return
        for one in (self._listener, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._listener, self._open = None, []

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            self._open += [client, server]
            for ends in ((client, server), (server, client)):
                threading.Thread(target=self._forward, args=ends, daemon=True).start()

    @staticmethod
    def _forward(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@contextmanager
def serving(
    command: Sequence[str], health: str, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a server during a block."""
    process = start(command, health, log, environment)
    try:
        yield process
    finally:
        stop(process)
