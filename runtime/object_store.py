"""Requests to an object store: retried while it does not answer, with plain error messages.

Address and credentials come from Amazon's environment variables (AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID, AWS_REGION and so on) or from Google's default credentials.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from runtime.errors import UnavailableError, UserError

Place = str | Path
"""A local path, or the URI of an object or a folder in a store."""

Result = TypeVar("Result")

RETRY_TIMEOUT_S, START_TIMEOUT_S = 120.0, 10.0
"""How long a request is retried while the store does not answer: in a job, and at its start."""

_SCHEMES = ("s3", "gs")
_MAX_BACKOFF_S = 10.0
_CONNECT_TIMEOUT_S, _REQUEST_TIMEOUT_S = 5, 20
"""Timeouts: a store sends nothing for a while when it copies a large object."""

_REPORT_INTERVAL_S = 30.0
_last_report = [float("-inf")]

_AWS_ERROR = re.compile(r"AWS Error (?P<code>\w+).*? during \w+ operation: (?P<text>.*)", re.DOTALL)
_OUTAGE = re.compile(
    r"NETWORK_CONNECTION|SLOW_DOWN|THROTTL|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT"
    r"|HTTP status (?:429|5\d\d)|curlCode|\bUNAVAILABLE\b|DEADLINE_EXCEEDED"
)
_REFUSED = re.compile(
    r"ACCESS_DENIED|SIGNATURE|ACCESS_KEY|TOKEN|CREDENTIALS|access key|PERMISSION_DENIED"
    r"|UNAUTHENTICATED|ExpiredToken"
)


def bucket_and_key(place: Place) -> str:
    """Bucket and key of a place, in pyarrow's form."""
    return str(place).partition("://")[2].rstrip("/")


def request(
    place: Place, operation: Callable[[Any, str], Result], timeout_s: float | None = None
) -> Result:
    """Calls ``operation`` with the file system and key of a place; retries during an outage.

    Raises:
        FileNotFoundError: there is no such object or folder.
        UserError: the store refuses, or the place has an empty name in it.
        UnavailableError: the store does not answer, or has stopped answering.
    """
    import tenacity

    scheme, _, rest = str(place).partition("://")
    # For pyarrow, this would be a bug of its caller.
    if "//" in rest.rstrip("/"):
        raise UserError(f"{str(place)!r}: expected one slash between names, found two")
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_outage),
        wait=tenacity.wait_exponential_jitter(multiplier=0.5, max=_MAX_BACKOFF_S, jitter=1),
        stop=tenacity.stop_after_delay(RETRY_TIMEOUT_S if timeout_s is None else timeout_s),
        before_sleep=_report_outage,
        reraise=True,
    )
    try:
        return retrying(
            lambda: operation(_store(scheme, rest.partition("/")[0]), bucket_and_key(place))
        )
    except OSError as error:
        # With an errno, it comes from this machine, or means that there is no such object.
        if error.errno is not None:
            raise
        raise _translate(str(place), error) from error


def _report_outage(state: Any) -> None:
    """Prints from time to time that the store does not answer."""
    now = time.monotonic()
    if state.seconds_since_start > START_TIMEOUT_S and now - _last_report[0] > _REPORT_INTERVAL_S:
        _last_report[0] = now
        print("the store does not answer; trying again", file=sys.stderr, flush=True)


def is_outage(error: BaseException) -> bool:
    """Whether an error of pyarrow means that the store does not answer."""
    return isinstance(error, OSError) and bool(_OUTAGE.search(str(error)))


def _translate(place: str, error: OSError) -> Exception:
    """The exception to raise for an error of the store, or of pyarrow on its behalf."""
    found = _AWS_ERROR.search(str(error))
    code, text = (found["code"], found["text"]) if found else ("", str(error))
    reason = text.partition(" (Request ID")[0].splitlines()[0].removesuffix(".")
    if is_outage(error):
        return UnavailableError(
            f"{place!r}: the store does not answer ({reason}); run the same command again when it "
            "is back, or name another by AWS_ENDPOINT_URL"
        )
    if "NO_SUCH_KEY" in code or "No such file or directory" in text:
        return FileNotFoundError(f"{place}: {reason}")
    if "NO_SUCH_BUCKET" in code:
        bucket = bucket_and_key(place).partition("/")[0]
        return UserError(f"{place!r}: there is no bucket {bucket!r}; make it, or name another")
    if _REFUSED.search(f"{code} {text}"):
        return UserError(
            f"{place!r}: the store refuses access ({code}: {reason}); check {_credentials(place)} "
            "and what they may do there"
        )
    return UserError(f"{place!r}: the store refuses: {reason}")


def _credentials(place: str) -> str:
    if place.startswith("gs://"):
        return "GOOGLE_APPLICATION_CREDENTIALS"
    return "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


@functools.cache
def _store(scheme: str, bucket: str) -> Any:
    """The pyarrow file system; all threads of the process share its connections."""
    from pyarrow import fs

    if scheme not in _SCHEMES or not bucket:
        raise UserError(
            f"{scheme}://{bucket}: expected s3://<bucket>/<prefix> or gs://<bucket>/<prefix>"
        )
    setting = os.environ.get
    if scheme == "gs":
        # By default it retries for a quarter of an hour.
        patience = timedelta(seconds=_REQUEST_TIMEOUT_S)
        http, _, emulator = setting("STORAGE_EMULATOR_HOST", "").rpartition("://")
        if emulator:
            return fs.GcsFileSystem(
                anonymous=True,
                scheme=http or "http",
                endpoint_override=emulator,
                retry_time_limit=patience,
            )
        return fs.GcsFileSystem(retry_time_limit=patience)
    endpoint = setting("AWS_ENDPOINT_URL_S3") or setting("AWS_ENDPOINT_URL")
    region = setting("AWS_REGION") or setting("AWS_DEFAULT_REGION")
    if not region and not endpoint:
        region = fs.resolve_s3_region(bucket)
    # Opened at the first write, an object that fits into one request takes only one.
    return fs.S3FileSystem(
        endpoint_override=endpoint,
        region=region,
        allow_delayed_open=True,
        connect_timeout=_CONNECT_TIMEOUT_S,
        request_timeout=_REQUEST_TIMEOUT_S,
    )
