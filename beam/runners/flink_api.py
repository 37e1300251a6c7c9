"""Client of Flink's REST API: the requests that running a job needs."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import IO, Any

from runtime.errors import UnavailableError, UserError, first_line

_TIMEOUT_S = 20
_START_TIMEOUT_S = 300
"""Long enough for Beam to translate a pipeline inside the JobManager."""

_RETRY_S = 60
"""How long requests are retried that a JobManager does not answer while a job runs."""

_CHUNK = 1 << 20


class FlinkCluster:
    """A cluster's JobManager at ``host:port``."""

    def __init__(self, master: str) -> None:
        self.url = (master if "://" in master else f"http://{master}").rstrip("/")

    def version(self) -> str:
        """Flink's version, e.g. ``1.20.5``.

        Raises:
            UserError: another server answers at this address.
        """
        complaint = f"{self.url} is not a Flink JobManager: expected its version, found"
        try:
            config = self._ask("GET", "config")
        except RuntimeError as error:
            raise UserError(f"{complaint} {first_line(error)}") from error
        if not isinstance(config, dict) or "flink-version" not in config:
            raise UserError(f"{complaint} {first_line(config)}")
        return str(config["flink-version"])

    def size(self) -> tuple[int, int]:
        """Number of TaskManagers and of their slots."""
        overview = self._ask("GET", "overview")
        return overview["taskmanagers"], overview["slots-total"]

    def task_managers(self) -> dict[str, int]:
        """Number of slots of each TaskManager, by its id."""
        managers = self._ask("GET", "taskmanagers")["taskmanagers"]
        return {manager["id"]: manager["slotsNumber"] for manager in managers}

    def default_parallelism(self) -> int | None:
        """``parallelism.default`` of the cluster's configuration."""
        for entry in self._ask("GET", "jobmanager/config"):
            if entry["key"] == "parallelism.default":
                return int(entry["value"])
        return None

    def upload(self, jar: IO[bytes], name: str) -> str:
        """Uploads a jar in pieces and returns its id, which ends with ``name``."""
        boundary = "----------lyft"
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="jarfile"; filename="{name}"\r\n'
            "Content-Type: application/java-archive\r\n\r\n"
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        size = jar.seek(0, os.SEEK_END)

        def body() -> Iterator[bytes]:
            jar.seek(0)
            yield head
            while chunk := jar.read(_CHUNK):
                yield chunk
            yield tail

        url = urllib.parse.urlsplit(self.url)
        https = url.scheme == "https"
        connect = http.client.HTTPSConnection if https else http.client.HTTPConnection
        connection = connect(url.netloc, timeout=_START_TIMEOUT_S)
        headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(len(head) + size + len(tail)),
        }
        try:
            connection.request("POST", f"{url.path}/v1/jars/upload", body(), headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(
                f"Flink at {self.url} cannot be sent the job: {error}"
            ) from error
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise RuntimeError(f"Flink at {self.url} rejected the job: {text}")
        return str(json.loads(text)["filename"]).rpartition("/")[2]

    def run(self, jar: str, main_class: str, job: str, parallelism: int) -> None:
        """Starts a job under an id of 32 hex digits.

        Raises:
            RuntimeError: the jar's main class has failed; the message is Flink's.
        """
        content = {"entryClass": main_class, "jobId": job, "parallelism": parallelism}
        self._ask("POST", f"jars/{jar}/run", content, timeout_s=_START_TIMEOUT_S)

    def state(self, job: str, *, retry: bool = True) -> str:
        """State of a job, e.g. ``RUNNING``."""
        return str(self._ask("GET", f"jobs/{job}/status", retry=retry)["status"])

    def failure(self, job: str) -> str:
        """Stack trace of a job's last failure; empty if there was none.

        Earlier failures are over: a store that did not answer, for example, is back.
        """
        exceptions = self._ask("GET", f"jobs/{job}/exceptions", retry=True)
        newest = [entry["stacktrace"] for entry in exceptions["exceptionHistory"]["entries"][:1]]
        return "\n".join([exceptions.get("root-exception") or "", *newest]).strip()

    def cancel(self, job: str) -> None:
        """Cancels a job."""
        self._ask("PATCH", f"jobs/{job}?mode=cancel")

    def delete(self, name: str) -> None:
        """Deletes the jar that was uploaded under a name, if there is one."""
        for jar in self._ask("GET", "jars")["files"]:
            if jar["name"] == name:
                self._ask("DELETE", f"jars/{jar['id']}")

    def _ask(
        self,
        method: str,
        path: str,
        content: dict[str, Any] | None = None,
        *,
        timeout_s: float = _TIMEOUT_S,
        retry: bool = False,
    ) -> Any:
        """Sends a request and returns the JSON of the answer.

        Raises:
            UnavailableError: there is no answer; with ``retry``, none for a minute, or the
                JobManager does not know the job in the path.
            RuntimeError: the answer is an error.
        """
        request = urllib.request.Request(  # noqa: S310 - the user names the address
            f"{self.url}/v1/{path}",
            data=None if content is None else json.dumps(content).encode(),
            headers={"Content-Type": "application/json"},
            method=method,
        )
        deadline = time.monotonic() + (_RETRY_S if retry else 0)
        while True:
            try:
                with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
                    text = answer.read()
                break
            except (OSError, http.client.HTTPException) as error:
                # JobManagers answer 503 while they elect a leader.
                if isinstance(error, urllib.error.HTTPError) and error.code != 503:
                    if not retry or error.code != 404:
                        raise RuntimeError(_message(error)) from error
                    raise UnavailableError(
                        f"Flink at {self.url} no longer knows job {path.split('/')[1]}: its "
                        "JobManager has restarted; run the same command again"
                    ) from error
                if time.monotonic() > deadline:
                    reason = getattr(error, "reason", error)
                    message = f"Flink does not answer at {self.url}: {reason}"
                    raise UnavailableError(message) from error
                time.sleep(1)
        try:
            return json.loads(text)
        except ValueError as error:
            raise RuntimeError(f"no JSON: {first_line(text.decode(errors='replace'))}") from error


def _message(error: urllib.error.HTTPError) -> str:
    """Flink's own text of an error; the last entry is the stack trace."""
    text = error.read().decode()
    try:
        return str(json.loads(text)["errors"][-1])
    except (ValueError, KeyError, IndexError):
        return f"HTTP {error.code}: {text}"
