"""Behaviour that all command lines share."""

import argparse
import errno
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from jobs import python
from servers import answering

from runtime.command_line import (
    Parser,
    add_config,
    add_tracking_uri,
    make_folder_of,
    run_main,
    validated,
)
from runtime.errors import UserError
from runtime.mlflow_store import TRACKING_URI
from runtime.proxies import exempt_loopback
from schemas.config import TrainConfig


@pytest.mark.parametrize(
    ("given", "environment", "found"),
    [
        ([], None, TRACKING_URI),
        ([], "", TRACKING_URI),
        ([], "http://mlflow:5000", "http://mlflow:5000"),
        (["--tracking_uri=sqlite:///a.db"], "http://mlflow:5000", "sqlite:///a.db"),
    ],
)
def test_the_tracking_uri_is_the_argument_the_variable_or_the_default(
    given: list[str], environment: str | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if environment is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", environment)
    parser = argparse.ArgumentParser()
    add_tracking_uri(parser)
    assert parser.parse_args(given).tracking_uri == found
    assert TRACKING_URI in parser.format_help()


def test_a_value_out_of_bounds_is_named() -> None:
    with pytest.raises(UserError, match=r"^epochs: Input should be greater.*, found -1$"):
        validated(TrainConfig, epochs=-1)
    # The tables could not be named after such a model.
    with pytest.raises(UserError, match=r"^model_name: .*, found 'lyft-'$"):
        validated(TrainConfig, model_name="lyft-")


def test_a_value_below_the_home_folder_is_found_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``--output=~/report.html``, in which no shell expands it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = Parser()
    parser.add_argument("--output", default="outputs")
    parser.add_argument("--ids", nargs="+")
    assert parser.parse_args(["--output=~/tables/a"]).output == f"{tmp_path}/tables/a"
    for other in ("outputs/~/a", "~a", "s3://tables/~/a"):
        assert parser.parse_args(["--output", other]).output == other
    assert parser.parse_args(["--ids", "a", "b"]).ids == ["a", "b"]


def test_an_interruption_says_that_published_output_is_intact(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["job"])
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    assert run_main(main) == 130
    # What a thread meets while the process ends is not worth another line.
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err == "error: interrupted; what was published before is intact\n"


def test_a_mistake_in_the_arguments_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(arguments: Sequence[str]) -> str:
        parser = Parser(prog="job")
        add_config(parser, TrainConfig)
        parser.parse_args(arguments)
        return "never"

    monkeypatch.setattr(sys, "argv", ["job", "--epochs=many"])
    assert run_main(main) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: argument --epochs: invalid int value: 'many'; see --help"
    ]


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, 2), (errno.EACCES, 2), (errno.EIO, None)]
)
def test_a_full_or_read_only_disk_is_one_line(
    number: int,
    code: int | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main(_: object) -> str:
        raise OSError(number, os.strerror(number), "state.npz")

    monkeypatch.setattr(sys, "argv", ["job"])
    if code is None:
        with pytest.raises(OSError, match="state"):
            run_main(main)
    else:
        assert run_main(main) == code
        expected = f"error: 'state.npz': {os.strerror(number)}; nothing was published\n"
        assert capsys.readouterr().err == expected


def test_a_closed_pipe_is_no_error() -> None:
    job = (
        "from runtime.command_line import run_main\n"
        "raise SystemExit(run_main(lambda _: 'row\\n' * 10**6))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", job], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"row\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_the_folder_of_a_file_is_made_or_named(tmp_path: Path) -> None:
    make_folder_of(str(tmp_path / "a/b/report.md"), "--report")
    assert (tmp_path / "a/b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^--report '.*/file/report.md' cannot be written: "):
        make_folder_of(str(tmp_path / "file/report.md"), "--report")


ASK = """
import sys, urllib.request
from runtime.command_line import run_main

sys.exit(run_main(lambda argv: urllib.request.urlopen(argv[0]).read().decode()))
"""


@pytest.mark.parametrize("exempt", ["", "example.org"])
def test_servers_of_this_machine_are_reached_without_a_proxy(exempt: str) -> None:
    environment = {**os.environ, "http_proxy": "http://127.0.0.1:1", "NO_PROXY": exempt}
    environment.pop("no_proxy", None)
    with answering(lambda _: (200, b"here")) as address:
        done = python("-c", ASK, address, env=environment)
    assert done.stdout == "here\n", done.stderr


def test_exemptions_from_a_proxy_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    exempt_loopback()
    assert "no_proxy" not in os.environ
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "a.example, localhost")
    monkeypatch.setenv("no_proxy", "")
    exempt_loopback()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "a.example,localhost,127.0.0.1"
    monkeypatch.setenv("no_proxy", "*")
    exempt_loopback()
    assert os.environ["no_proxy"] == "*"
