"""Command lines built from the configs, and the one place that turns errors into exit codes."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from runtime.child_processes import end_with_parent
from runtime.errors import UnavailableError, UserError, disk_errors_as_user_errors
from runtime.mlflow_store import TRACKING_URI
from runtime.proxies import exempt_loopback
from runtime.yaml_files import explain

EX_TEMPFAIL = 75
"""Exit code of a failure that may succeed later: EX_TEMPFAIL of sysexits.h."""

UP_TO_DATE = "nothing has changed"
"""What a job logs if it finds its output published and intact; flows look for it in the log."""

Config = TypeVar("Config", bound=BaseModel)
Log = Callable[[str], None]


class Parser(argparse.ArgumentParser):
    """An argument parser that raises a one-line UserError; options cannot be abbreviated.

    A value that begins with ``~/`` is below the home folder. A shell does not expand it in
    ``--output=~/tables``, which would make a folder named ``~``.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Overrides argparse, which would print all options first."""
        raise UserError(f"{message}; see --help")

    def parse_known_args(self, *given: Any, **options: Any) -> Any:
        """Overrides argparse, whose ``parse_args`` calls it."""
        found, others = super().parse_known_args(*given, **options)
        for name, value in vars(found).items():
            if isinstance(value, str) and value.startswith("~/"):
                setattr(found, name, os.path.expanduser(value))
        return found, others


class JobParser(Parser):
    """A job's command line; ``@file`` stands for the arguments in a file, one per line.

    Empty lines and lines that begin with ``#`` are ignored.
    """

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, fromfile_prefix_chars="@")

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        """Overrides argparse: the arguments in one line of such a file."""
        line = arg_line.strip()
        return [] if line.startswith("#") or not line else [line]


def add_config(parser: argparse.ArgumentParser, config: type[BaseModel]) -> None:
    """Adds one ``--option`` for each field of ``config``, with its description and default."""
    for name, field in config.model_fields.items():
        options: dict[str, Any] = {"default": field.default}
        if get_origin(field.annotation) is Literal:
            options["choices"] = get_args(field.annotation)
            options["type"] = type(options["choices"][0])
        else:
            options["type"] = field.annotation
            options["metavar"] = name.upper()
        parser.add_argument(
            f"--{name}", help=f"{field.description} (default: {field.default})", **options
        )


def add_tracking_uri(parser: argparse.ArgumentParser) -> None:
    """Adds ``--tracking_uri``; defaults to MLFLOW_TRACKING_URI, then to ``TRACKING_URI``."""
    parser.add_argument(
        "--tracking_uri",
        default=os.environ.get("MLFLOW_TRACKING_URI") or TRACKING_URI,
        help=f"MLflow store or server (default: MLFLOW_TRACKING_URI, or {TRACKING_URI})",
    )


def config_from(config: type[Config], args: argparse.Namespace) -> Config:
    """The config that the parsed arguments describe.

    Raises:
        UserError: a value is out of bounds; the message names the option.
    """
    return validated(config, **{name: getattr(args, name) for name in config.model_fields})


def validated(config: type[Config], **values: Any) -> Config:
    """The config with these values.

    Raises:
        UserError: a value is out of bounds; the message names it.
    """
    try:
        return config(**values)
    except ValidationError as error:
        raise UserError(explain(error)) from error


def log(text: str) -> None:
    """Prints a message to standard error; standard output is reserved for the result."""
    print(text, file=sys.stderr, flush=True)


def log_as(command: str) -> Log:
    """A function that prints messages as ``log`` does, after the command's name."""
    return lambda text: log(f"{command}: {text}")


def to_arguments(config: BaseModel) -> list[str]:
    """The command-line arguments that ``config_from`` turns back into ``config``."""
    return [f"--{name}={value}" for name, value in config.model_dump().items()]


def make_folder_of(file: str, option: str) -> None:
    """Makes the folder of a file that a command writes at its end, before it begins.

    Raises:
        UserError: it cannot be made; the message names ``option``.
    """
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{option} {file!r} cannot be written: {error.strerror}; name a file in a folder that "
            "can be made or written to"
        ) from error


def run_main(main: Callable[[Sequence[str]], str]) -> int:
    """Runs a job's ``main`` on the process's arguments and prints its result as the last line.

    A job that was started by a flow or by another job ends when its parent does.

    Returns:
        0; or, after one line on standard error, 2 for a user error, 75 for a service that does
        not answer, 130 for an interrupt.
    """
    end_with_parent()
    exempt_loopback()
    try:
        with disk_errors_as_user_errors():
            result = main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EX_TEMPFAIL if isinstance(error, UnavailableError) else 2
    except KeyboardInterrupt:
        print("error: interrupted; what was published before is intact", file=sys.stderr)
        # A runner's threads may fail while the process ends, when their server has been stopped.
        threading.excepthook = lambda _: None
        return 130
    try:
        print(result, flush=True)
    except BrokenPipeError:
        # The reader, e.g. `head`, closed the pipe; Python would try to write again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
