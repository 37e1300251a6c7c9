import shlex
import sys

import pytest

from beam.pipeline import _OS_ERROR, _runner, pipeline_options
from schemas.errors import UserError


def test_values_of_options_may_stand_apart() -> None:
    options = pipeline_options(["--job_name", "mine", "--direct_num_workers=3"])
    assert options.get_all_options()["job_name"] == "mine"
    with pytest.raises(UserError, match="unknown argument 'more'"):
        pipeline_options(["--job_name=mine", "more"])


def test_an_interpreter_with_a_space_in_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/my home/python")
    runner = _runner(pipeline_options([]))
    command = runner._default_environment.command_string
    assert shlex.split(command) == ["/my home/python", "-m", "beam.worker"]


def test_which_errors_of_the_system_are_the_users_to_mend() -> None:
    assert _OS_ERROR.search("OSError: [Errno 28] No space left on device: 'x'")
    assert _OS_ERROR.search("PermissionError: [Errno 13] Permission denied: 'x'")
    assert not _OS_ERROR.search("OSError: [Errno 5] Input/output error: 'x'")
