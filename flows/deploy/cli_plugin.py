"""Plugin for ``prefect deployment run``: bare names, text parameters as text, reason of a failure.

It also lets Prefect's command line find the server of ``make up``.

Prefect loads this module through its entry point in the group ``prefect.plugins`` if plugins are
enabled; prefect.toml enables them for the project's folder only. The hook runs while prefect is
imported, before the command line is parsed, so it can rewrite the arguments.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from prefect.plugins import HookContext, SetupResult, register_hook

from flows.deploy.watching import print_failure_reason
from runtime.proxies import exempt_loopback
from runtime.services import ROOT, prefect_api_url

_COMMAND = ["deployment", "run"]
_SWITCHES = ("--watch", "--no-watch", "--help")
"""Options of ``prefect deployment run`` that take no value."""
_PARAMETER_OPTIONS = ("-p", "--param")


@register_hook
async def setup_environment(*, ctx: HookContext) -> SetupResult | None:
    """Prepares ``prefect deployment run``; the server defaults to the local one."""
    if not _is_prefect(sys.argv):
        return None
    exempt_loopback()
    local = None if ctx.api_url else prefect_api_url(Path(ROOT))
    index = name_index(sys.argv)
    if index:
        if not (api_url := ctx.api_url or local):
            # Prefect would start an ephemeral server, which has no deployments.
            _fail("no Prefect server is named or runs here; `make up`, or set PREFECT_API_URL")
        sys.argv[index], schema = await _find_deployment(sys.argv[index], api_url)
        sys.argv[:] = quote_texts(sys.argv, schema)
        print_failure_reason()
    return SetupResult(env={"PREFECT_API_URL": local}) if local else None


def name_index(argv: Sequence[str]) -> int | None:
    """Index of NAME in ``prefect deployment run NAME …``; None in any other command."""
    if list(argv[1:3]) != _COMMAND:
        return None
    index = 3
    while index < len(argv) and argv[index].startswith("-"):
        index += 1 if "=" in argv[index] or argv[index] in _SWITCHES else 2
    return index if index < len(argv) else None


def quote_texts(argv: Sequence[str], schema: Mapping[str, Any]) -> list[str]:
    """Quotes values of text parameters, which Prefect reads as JSON: ``-p source="20240501"``.

    Args:
        schema: the deployment's parameters by name, as JSON schemas.
    """

    def quote(assignment: str) -> str:
        name, _, value = assignment.partition("=")
        parameter = schema.get(name, {})
        types = {option.get("type") for option in parameter.get("anyOf", [parameter])}
        try:
            decoded = json.loads(value)
        except ValueError:
            is_valid = False
        else:
            is_valid = isinstance(decoded, str) or (decoded is None and "null" in types)
        return assignment if is_valid or "string" not in types else f"{name}={json.dumps(value)}"

    quoted = list(argv)
    for index, word in enumerate(argv):
        if argv[index - 1] in _PARAMETER_OPTIONS:
            quoted[index] = quote(word)
        elif word.startswith(tuple(f"{option}=" for option in _PARAMETER_OPTIONS)):
            option, _, assignment = word.partition("=")
            quoted[index] = f"{option}={quote(assignment)}"
    return quoted


def resolve_name(name: str, known: Sequence[str]) -> str:
    """The only ``flow/deployment`` in ``known`` with this name, bare or full.

    Raises:
        LookupError: none or several of them have this name.
    """
    matches = [full for full in known if name in (full, full.partition("/")[2])]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise LookupError(
            f"deployment {name!r} is ambiguous: expected one of {', '.join(sorted(matches))}"
        )
    others = ", ".join(sorted(known)) or "none; `make up` or `python -m flows.deploy` makes them"
    raise LookupError(f"deployment {name!r} does not exist; found {others}")


def _is_prefect(argv: Sequence[str]) -> bool:
    """Whether this process is Prefect's command line rather than a flow that imports prefect."""
    program = Path(argv[0]) if argv else Path()
    # While `python -m prefect` imports prefect, the first argument is still `-m`.
    return program.name in ("prefect", "-m") or program.parts[-2:] == ("prefect", "__main__.py")


async def _find_deployment(name: str, api_url: str) -> tuple[str, dict[str, Any]]:
    """Full name and parameter schemas of the deployment with this name, bare or full."""
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
    from prefect.settings import PREFECT_API_AUTH_STRING

    auth = PREFECT_API_AUTH_STRING.value()
    by_name = DeploymentFilter(name=DeploymentFilterName(any_=[name.rpartition("/")[2]]))
    try:
        async with PrefectClient(api_url, auth_string=auth) as client:
            matches = await client.read_deployments(deployment_filter=by_name)
            known = {
                f"{(await client.read_flow(deployment.flow_id)).name}/{deployment.name}": deployment
                for deployment in matches or await client.read_deployments()
            }
        full = resolve_name(name, list(known))
        return full, (known[full].parameter_openapi_schema or {}).get("properties", {})
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
