"""Lets Prefect's command line accept bare deployment names and find the server of ``make up``.

Prefect loads this module through its entry point in the group ``prefect.plugins`` if plugins are
enabled; prefect.toml enables them for the project's folder only. The hook runs while prefect is
imported, before the command line is read, so it can rewrite the arguments.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from prefect.plugins import HookContext, SetupResult, register_hook

from flows.state import ROOT, running_server

_COMMAND = ["deployment", "run"]
_SWITCHES = ("--watch", "--no-watch", "--help")
"""Options of ``prefect deployment run`` that take no value."""


@register_hook
async def setup_environment(*, ctx: HookContext) -> SetupResult | None:
    """Completes NAME in ``prefect deployment run NAME``; the server defaults to the local one."""
    if not _is_prefect(sys.argv):
        return None
    local = None if ctx.api_url else running_server(Path(ROOT))
    if position := bare_name(sys.argv):
        if not (api_url := ctx.api_url or local):
            # Prefect would start a server for this command alone, which has no deployments.
            _fail("no Prefect server is named or runs here; `make up`, or set PREFECT_API_URL")
        sys.argv[position] = await _full_name(sys.argv[position], api_url)
    return SetupResult(env={"PREFECT_API_URL": local}) if local else None


def bare_name(argv: Sequence[str]) -> int | None:
    """Index of NAME in ``prefect deployment run NAME …`` if it names no flow; else None."""
    if list(argv[1:3]) != _COMMAND:
        return None
    index = 3
    while index < len(argv) and argv[index].startswith("-"):
        index += 1 if "=" in argv[index] or argv[index] in _SWITCHES else 2
    return index if index < len(argv) and "/" not in argv[index] else None


def full_name(name: str, known: Sequence[str]) -> str:
    """The only ``flow/deployment`` in ``known`` whose deployment is called ``name``.

    Raises:
        LookupError: no flow, or more than one, has such a deployment.
    """
    found = [one for one in known if one.partition("/")[2] == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise LookupError(
            f"deployment {name!r} is ambiguous: expected one of {', '.join(sorted(found))}"
        )
    others = ", ".join(sorted(known)) or "none; `make up` or `python -m flows.deploy` makes them"
    raise LookupError(f"deployment {name!r} does not exist; found {others}")


def _is_prefect(argv: Sequence[str]) -> bool:
    """Whether this process is Prefect's command line rather than a flow that imports prefect."""
    program = Path(argv[0]) if argv else Path()
    # While `python -m prefect` imports prefect, the first argument is still `-m`.
    return program.name in ("prefect", "-m") or program.parts[-2:] == ("prefect", "__main__.py")


async def _full_name(name: str, api_url: str) -> str:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
    from prefect.settings import PREFECT_API_AUTH_STRING

    auth = PREFECT_API_AUTH_STRING.value()
    by_name = DeploymentFilter(name=DeploymentFilterName(any_=[name]))
    try:
        async with PrefectClient(api_url, auth_string=auth) as client:
            found = await client.read_deployments(deployment_filter=by_name)
            known = found or await client.read_deployments()
            names = [f"{(await client.read_flow(one.flow_id)).name}/{one.name}" for one in known]
        return full_name(name, names)
    except LookupError as error:
        _fail(str(error))
    except Exception as error:  # noqa: BLE001 - whatever the transport raises
        kind = type(error).__name__
        _fail(
            f"Prefect at {api_url} does not answer ({kind}); `make up`, or correct PREFECT_API_URL"
        )


def _fail(message: str) -> NoReturn:
    # Prefect would log an Exception and continue; SystemExit ends the command.
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
