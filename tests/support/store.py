"""A real S3 server for tests: versitygw, a gateway to a folder, built from source once.

The program is kept where ``beam.tools`` keeps its own; building it needs Go and its module proxy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import servers

from beam.tools import tools_folder as tools
from runtime import storage

VERSION = "v1.8.0"
BUCKET = "lyft"
KEY, SECRET = "tester", "tester-secret"


def binary() -> Path:
    """The server's program, built if it is missing; skips the test if it cannot be built.

    Go checks the hashes of all modules; one that is not the expected one fails the test.
    """
    program = tools() / f"versitygw-{VERSION}"
    if program.exists():
        return program
    go = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    if go is None:
        pytest.skip("the S3 server of the tests is built with Go, which is not installed")
    program.parent.mkdir(parents=True, exist_ok=True)
    building = program.parent / f"building-{os.getpid()}"
    # Unoptimised and without symbols: in two thirds of the time.
    flags = ["-gcflags=all=-N -l", "-ldflags=-s -w"]
    done = subprocess.run(
        [go, "install", *flags, f"github.com/versity/versitygw/cmd/versitygw@{VERSION}"],
        env={
            "GOPATH": str(building),
            "GOFLAGS": "-modcacherw",
            # The compiler collects its garbage less often: a sixth less of processor time.
            "GOGC": "400",
            **{name: value for name, value in os.environ.items() if name != "GOBIN"},
        },
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        if done.returncode:
            reason = f"the S3 server cannot be built: {done.stderr.splitlines()[-1]}"
            servers.not_fetched(done.stderr, reason)
        os.replace(building / "bin/versitygw", program)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return program


class Store:
    """An S3 server that keeps its data in ``folder``.

    Attributes:
        environment: the environment variables that a client needs.
    """

    def __init__(self, folder: Path) -> None:
        self._program = binary()
        self._folder = folder
        self._data = folder / "data"
        (self._data / BUCKET).mkdir(parents=True, exist_ok=True)
        self._port = servers.free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.environment: Mapping[str, str] = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        """Starts the server, or restarts it with the same port and data."""
        address = f"127.0.0.1:{self._port}"
        self._process = servers.start(
            [
                *(str(self._program), "--port", address, "--health", "/health", "--quiet"),
                *("posix", str(self._data)),
            ],
            f"http://{address}/health",
            self._folder / "server.log",
            {"ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET},
        )

    def stop(self) -> None:
        """Stops the server; keeps its data."""
        if self._process is not None:
            servers.stop(self._process)
            self._process = None

    def uri(self, *parts: str) -> str:
        """URI of a path in the bucket."""
        return "/".join((f"s3://{BUCKET}", *parts))

    def put(self, folder: Path, name: str) -> str:
        """Copies a folder into the bucket, bypassing the server; returns its URI."""
        shutil.copytree(folder, self._data / BUCKET / name)
        return self.uri(name)

    def files(self, *parts: str) -> dict[str, str]:
        """SHA-256 of all objects below a path, by relative path; bypasses the server."""
        root = self._data.joinpath(BUCKET, *parts)
        return {path: storage.file_sha256(root / path) for path in self._paths(root)}

    def has_staged(self, *parts: str) -> bool:
        """Whether a job below a path has passed its checks and staged a file to publish."""
        return any(".staging-" in path for path in self._paths(self._data.joinpath(BUCKET, *parts)))

    @staticmethod
    def _paths(root: Path) -> list[str]:
        """Paths of all files below a folder that other processes may be changing."""
        found = [
            Path(folder, name).relative_to(root)
            for folder, _, names in os.walk(root)
            for name in names
        ]
        return sorted(str(path) for path in found if ".sgwtmp" not in path.parts)


@contextmanager
def store(folder: Path) -> Iterator[Store]:
    """Runs a store during a block; this process and its children are set up to use it."""
    from runtime import object_store

    started = Store(folder)
    started.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("AWS_"):
                patch.delenv(name)
        for name, value in started.environment.items():
            patch.setenv(name, value)
        # The environment is read when a connection is made.
        object_store._store.cache_clear()
        try:
            yield started
        finally:
            started.stop()
    object_store._store.cache_clear()
