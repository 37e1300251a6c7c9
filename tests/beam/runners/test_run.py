"""Parsing of Beam's options."""

import pytest
from apache_beam.options.pipeline_options import DirectOptions, StandardOptions

from beam.runners import run
from beam.runners.run import _OS_ERROR, pipeline_options, processes_of
from runtime.errors import UserError


def test_values_of_options_may_stand_apart() -> None:
    options = pipeline_options(["--job_name", "mine", "--direct_num_workers=3"])
    assert options.get_all_options()["job_name"] == "mine"
    with pytest.raises(UserError, match="unknown argument 'more'"):
        pipeline_options(["--job_name=mine", "more"])


@pytest.mark.parametrize("given", [[], ["--direct_num_workers=0"]])
def test_there_is_a_worker_for_each_core_that_may_be_used(monkeypatch, given: list[str]) -> None:
    monkeypatch.setattr(run, "available_cores", lambda: 7)
    assert processes_of(pipeline_options(given)) == 7


def test_which_errors_of_the_system_are_the_users_to_mend() -> None:
    assert _OS_ERROR.search("OSError: [Errno 28] No space left on device: 'x'")
    assert _OS_ERROR.search("PermissionError: [Errno 13] Permission denied: 'x'")
    assert not _OS_ERROR.search("OSError: [Errno 5] Input/output error: 'x'")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--runner=Foo", "^--runner=Foo: expected one of .*FlinkRunner, FnApiRunner"),
        ("--direct_num_workers=many", "^Beam's options: argument --direct_num_workers: invalid"),
        ("--direct_num_workers=-1", r"^--direct_num_workers=-1: expected 0 \(one worker"),
        ("--runner=flink", "^--runner=FlinkRunner: expected --flink_master"),
    ],
)
def test_options_that_beam_cannot_use_are_one_line(
    argument: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=message):
        pipeline_options([argument])
    assert capfd.readouterr().err == ""


def test_a_runner_may_be_named_as_beam_allows() -> None:
    options = pipeline_options(["--runner=fnapi"])
    assert options.view_as(StandardOptions).runner == "FnApiRunner"
    assert options.view_as(DirectOptions).direct_running_mode == "multi_processing"
