"""Command lines made from the configs, and the one place that turns mistakes into exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import ValidationError

from schemas.classes import explain
from schemas.config import JobConfig
from schemas.errors import UnavailableError, UserError

TRY_AGAIN = 75
"""Exit code for what may work later: EX_TEMPFAIL of sysexits.h."""

Config = TypeVar("Config", bound=JobConfig)


def add_config(parser: argparse.ArgumentParser, config: type[JobConfig]) -> None:
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


def config_from(config: type[Config], args: argparse.Namespace) -> Config:
    """The config that the parsed arguments describe.

    Raises:
        UserError: a value is out of bounds; names the option.
    """
    try:
        return config(**{name: getattr(args, name) for name in config.model_fields})
    except ValidationError as error:
        raise UserError(explain(error)) from error


def to_arguments(config: JobConfig) -> list[str]:
    """The command-line arguments that ``config_from`` turns back into ``config``."""
    return [f"--{name}={value}" for name, value in config.model_dump().items()]


def run_main(main: Callable[[Sequence[str]], str]) -> int:
    """Runs a job's ``main`` on the process's arguments and prints what it returns last.

    Returns:
        0; after one line on standard error 2 for a mistake of the user's, 75 for a service that
        does not answer now.
    """
    try:
        result = main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return TRY_AGAIN if isinstance(error, UnavailableError) else 2
    except KeyboardInterrupt:
        print("error: interrupted; nothing was published", file=sys.stderr)
        return 130
    print(result, flush=True)
    return 0
