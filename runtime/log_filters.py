"""Silences Beam's tracebacks."""

from __future__ import annotations

from typing import Any, TextIO


class TracebackFilter:
    """A wrapper of standard error that drops tracebacks written in a single call.

    Beam's worker prints each exception before passing it on; the code that receives it reports it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._dropped = False

    def write(self, text: str) -> int:
        """Writes ``text``, unless it is a traceback or the line break after one."""
        drop = text.startswith("Traceback (most recent call last)")
        if not drop and not (self._dropped and text == "\n"):
            self._stream.write(text)
        self._dropped = drop
        return len(text)

    def close(self) -> None:
        """Leaves standard error open.

        A library that is imported meanwhile may keep this for its log, and close it with that log:
        absl does when Prefect sets up its own.
        """

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
