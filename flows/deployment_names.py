"""Prefect's command line in this folder: bare deployment names, and the server of ``make up``.

Prefect loads this module by its entry point in group ``prefect.plugins`` where plugins are enabled,
which prefect.toml does for the project's folder alone. Its hook runs while prefect is imported,
before the command line is read, so it may rewrite that line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from prefect.plugins import HookContext, SetupResult, register_hook

from flows.state import running_server

_COMMAND = ["deployment", "run"]
_SWITCHES = ("--watch", "--no-watch", "--help")
"""Options of that command that take no value."""

_LOCAL_STATE = Path("outputs/local")


@register_hook
async def setup_environment(*, ctx: HookContext) -> SetupResult | None:
    """Completes ``prefect deployment run NAME``; names the local server where none is named."""
    if not _is_prefect(sys.argv):
        return None
    local = None if ctx.api_url else running_server(_LOCAL_STATE)
    if position := bare_name(sys.argv):
        sys.argv[position] = await _full_name(sys.argv[position], ctx.api_url or local)
    return SetupResult(env={"PREFECT_API_URL": local}) if local else None


def bare_name(argv: Sequence[str]) -> int | None:
    """Index of the deployment's name in ``prefect deployment run NAME …`` where it has no flow."""
    if list(argv[1:3]) != _COMMAND:
        return None
    index = 3
    while index < len(argv) and argv[index].startswith("-"):
        index += 1 if "=" in argv[index] or argv[index] in _SWITCHES else 2
    return index if index < len(argv) and "/" not in argv[index] else None


def full_name(name: str, known: Sequence[str]) -> str:
    """The one ``flow/deployment`` of ``known`` whose deployment is called ``name``.

    Raises:
        LookupError: there is none, or several flows have one.
    """
    found = [one for one in known if one.partition("/")[2] == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise LookupError(
            f"deployment {name!r} is ambiguous: expected one of {', '.join(sorted(found))}"
        )
    others = ", ".join(sorted(known)) or "none; register them with `prefect deploy --all`"
    raise LookupError(f"deployment {name!r} does not exist; found {others}")


def _is_prefect(argv: Sequence[str]) -> bool:
    """Whether this process is Prefect's command line, and not a flow that imports prefect."""
    program = Path(argv[0]) if argv else Path()
    # While `python -m prefect` imports prefect, the first argument still is `-m`.
    return program.name in ("prefect", "-m") or program.parts[-2:] == ("prefect", "__main__.py")


async def _full_name(name: str, api_url: str | None) -> str:
    from prefect.client.orchestration import PrefectClient, get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

    by_name = DeploymentFilter(name=DeploymentFilterName(any_=[name]))
    try:
        async with PrefectClient(api_url) if api_url else get_client() as client:
            found = await client.read_deployments(deployment_filter=by_name)
            known = found or await client.read_deployments()
            names = [f"{(await client.read_flow(one.flow_id)).name}/{one.name}" for one in known]
        return full_name(name, names)
    except LookupError as error:
        _fail(str(error))
    except Exception as error:  # noqa: BLE001 - whatever the transport raises
        where = f" at {api_url}" if api_url else ""
        _fail(f"Prefect{where} does not answer ({type(error).__name__}); start it with `make up`")


def _fail(message: str) -> NoReturn:
    # Prefect would log an Exception and go on; this ends the command.
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
