"""The filter of tracebacks on standard error."""

import contextlib
import io
import logging
from typing import Any, cast

from absl.logging import PythonHandler

from runtime.log_filters import TracebackFilter


def test_a_traceback_and_its_line_break_are_dropped_alone() -> None:
    stream = io.StringIO()
    quiet = TracebackFilter(stream)
    for text in ("one\n", "Traceback (most recent call last):\n  …", "\n", "\n", "two"):
        quiet.write(text)
    assert stream.getvalue() == "one\n\ntwo"


def test_a_log_that_was_opened_meanwhile_does_not_close_standard_error() -> None:
    stream = io.StringIO()
    with contextlib.redirect_stderr(cast(Any, TracebackFilter(stream))):
        handler = PythonHandler()
    logging.shutdown([lambda: handler])
    assert not stream.closed
