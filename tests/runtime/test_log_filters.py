"""The filter of tracebacks on standard error, and the import of TensorFlow."""

import contextlib
import io
import logging
import sys
from types import ModuleType
from typing import Any, cast

from absl.logging import PythonHandler

from runtime.log_filters import TracebackFilter, import_tensorflow


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


TENSORFLOW = """
found = []
for name in ("matplotlib", "pandas", "sklearn"):
    try:
        __import__(name)
    except ImportError:
        continue
    found.append(name)

class config:
    list_physical_devices = list
"""


def test_tensorflow_is_imported_without_what_only_others_use(tmp_path, monkeypatch) -> None:
    (tmp_path / "tensorflow.py").write_text(TENSORFLOW)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("tensorflow", "matplotlib", "sklearn"):
        # Set first, so that what the test imports is undone, too.
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]
    # What is imported already costs nothing.
    pandas = ModuleType("pandas")
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    assert import_tensorflow().found == ["pandas"]
    assert sys.modules["pandas"] is pandas
    # Afterwards, they are there for everybody.
    assert not {"matplotlib", "sklearn"} & sys.modules.keys()
