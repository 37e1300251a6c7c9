"""The small rules of the flows: names of runs, when a retry helps, whose process is stopped.

Prefect makes its folder when it is imported, so what imports it is imported in the tests, whose
home is a temporary folder.
"""

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from flows.state import Service, State, running_server, start_time
from flows.steps import JobError, run_job
from schemas.errors import UnavailableError, UserError


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("/data/raw/lyft/", "lyft"),
        ("data/raw", "raw"),
        ("gs://bucket/lyft/raw", "raw"),
        ("outputs/datasets/lyft/1f0c2ab34d5e", "lyft-1f0c2ab34d5e"),
        ("models:/lyft-unet@champion", "lyft-unet@champion"),
        ("models:/lyft-unet/3", "lyft-unet-3"),
        ("outputs/unet.keras", "unet.keras"),
        ("..", "unnamed"),
    ],
)
def test_a_run_is_named_by_the_end_of_what_it_reads(place, name) -> None:
    from flows.names import short

    assert short(place) == name


@pytest.mark.parametrize(
    ("error", "helps"),
    [
        (UserError("no such folder"), False),
        (UnavailableError("MLflow does not answer"), True),
        (JobError("killed"), True),
        (OSError("no space left"), True),
        (TimeoutError("48 hours"), False),
    ],
)
def test_a_step_is_tried_again_only_where_that_can_help(error, helps) -> None:
    from flows.retries import may_help

    state = SimpleNamespace(result=lambda **_: error)
    assert may_help(None, None, state) is helps


def test_a_job_that_ends_with_75_may_be_tried_again(tmp_path, monkeypatch) -> None:
    (tmp_path / "absent.py").write_text(
        "import sys\nprint('error: MLflow is away', file=sys.stderr)\nsys.exit(75)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"^MLflow is away$"):
        run_job("absent", [], lambda _: None)


def test_the_name_is_found_among_the_options() -> None:
    from flows.deployment_names import bare_name, full_name

    run = ["prefect", "deployment", "run"]
    assert bare_name([*run, "infer"]) == 3
    assert bare_name([*run, "--watch", "-p", "a=1", "--params={}", "infer", "--tag", "x"]) == 7
    for others in ([*run, "infer/infer"], [*run, "--id", "x"], run, [*run, "--help"]):
        assert bare_name(others) is None
    assert bare_name(["prefect", "deployment", "inspect", "infer"]) is None
    known = ["ingest/nightly", "infer/nightly", "infer/infer"]
    assert full_name("infer", known) == "infer/infer"
    with pytest.raises(LookupError, match="ambiguous: expected one of infer/nightly, ingest/night"):
        full_name("nightly", known)
    with pytest.raises(LookupError, match="does not exist; found infer/infer, infer/nightly"):
        full_name("inf", known)
    with pytest.raises(LookupError, match="found none; register them with `prefect deploy --all`"):
        full_name("infer", [])


def test_only_the_process_that_was_started_is_stopped(tmp_path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(command, start_new_session=True) as process:
        ours = Service(pid=process.pid, started=start_time(process.pid) or "")
        other = ours.model_copy(update={"started": "1"})
        state = State(ports={"prefect": 4321}, services={"prefect": other})
        state.save(tmp_path)
        assert State.load(tmp_path) == state
        assert running_server(tmp_path) is None
        other.stop(1)
        time.sleep(0.2)
        assert process.poll() is None

        state.services["prefect"] = ours
        state.save(tmp_path)
        assert running_server(tmp_path) == "http://127.0.0.1:4321/api"
        ours.stop(10)
        process.wait(10)
        assert running_server(tmp_path) is None
    (tmp_path / "state.json").write_text("{")
    assert State.load(tmp_path) == State()
