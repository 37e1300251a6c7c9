"""Imports of large libraries."""

import gc
import sys
from types import ModuleType

import pytest

from runtime.imports import import_quickly, import_tensorflow

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


def test_the_garbage_collector_is_off_while_a_library_is_imported(tmp_path, monkeypatch) -> None:
    (tmp_path / "large.py").write_text("import gc\nenabled = gc.isenabled()\ncycle = []\n")
    (tmp_path / "broken.py").write_text("raise ImportError('broken')")
    monkeypatch.syspath_prepend(tmp_path)
    frozen = gc.get_freeze_count()
    try:
        large = import_quickly("large")
        assert not large.enabled
        assert import_quickly("large") is large
        with pytest.raises(ImportError, match="broken"):
            import_quickly("broken")
        assert gc.isenabled()
        # Later collections leave out what has been imported.
        assert gc.get_freeze_count() > frozen
        assert all(found is not large.cycle for found in gc.get_objects())
    finally:
        gc.unfreeze()
        sys.modules.pop("large", None)
