"""Lets ``prefect deployment run`` take bare names, paths like numbers, and say why a run failed.

It also lets Prefect's command line find the server of ``make up``.

Prefect loads this module through its entry point in the group ``prefect.plugins`` if plugins are
enabled; prefect.toml enables them for the project's folder only. The hook runs while prefect is
imported, before the command line is read, so it can rewrite the arguments.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from prefect.plugins import HookContext, SetupResult, register_hook

from flows.deploy.watching import print_reason_last
from runtime.services import ROOT, prefect_api_url

_COMMAND = ["deployment", "run"]
_SWITCHES = ("--watch", "--no-watch", "--help")
"""Options of ``prefect deployment run`` that take no value."""
_PARAMETER = ("-p", "--param")


@register_hook
async def setup_environment(*, ctx: HookContext) -> SetupResult | None:
    """Prepares ``prefect deployment run``; the server defaults to the local one."""
    if not _is_prefect(sys.argv):
        return None
    local = None if ctx.api_url else prefect_api_url(Path(ROOT))
    name = deployment_name(sys.argv)
    if name:
        if not (api_url := ctx.api_url or local):
            # Prefect would start a server for this command alone, which has no deployments.
            _fail("no Prefect server is named or runs here; `make up`, or set PREFECT_API_URL")
        sys.argv[name], schema = await _deployment(sys.argv[name], api_url)
        sys.argv[:] = as_texts(sys.argv, schema)
        print_reason_last()
    return SetupResult(env={"PREFECT_API_URL": local}) if local else None


def deployment_name(argv: Sequence[str]) -> int | None:
    """Index of NAME in ``prefect deployment run NAME …``; None in any other command."""
    if list(argv[1:3]) != _COMMAND:
        return None
    index = 3
    while index < len(argv) and argv[index].startswith("-"):
        index += 1 if "=" in argv[index] or argv[index] in _SWITCHES else 2
    return index if index < len(argv) else None


def as_texts(argv: Sequence[str], schema: Mapping[str, Any]) -> list[str]:
    """The command line whose texts are texts in JSON as well: ``-p source=20240501`` is no number.

    Args:
        schema: the deployment's parameters by name, as JSON schemas.
    """

    def text(spec: str) -> str:
        name, _, value = spec.partition("=")
        given = schema.get(name, {})
        kinds = {one.get("type") for one in given.get("anyOf", [given])}
        try:
            found = json.loads(value)
        except ValueError:
            is_right = False
        else:
            is_right = isinstance(found, str) or (found is None and "null" in kinds)
        return spec if is_right or "string" not in kinds else f"{name}={json.dumps(value)}"

    found = list(argv)
    for index, word in enumerate(argv):
        if argv[index - 1] in _PARAMETER:
            found[index] = text(word)
        elif word.startswith(tuple(f"{option}=" for option in _PARAMETER)):
            option, _, spec = word.partition("=")
            found[index] = f"{option}={text(spec)}"
    return found


def full_name(name: str, known: Sequence[str]) -> str:
    """The only ``flow/deployment`` in ``known`` that is ``name``, or whose deployment is.

    Raises:
        LookupError: no flow, or more than one, has such a deployment.
    """
    found = [one for one in known if name in (one, one.partition("/")[2])]
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


async def _deployment(name: str, api_url: str) -> tuple[str, dict[str, Any]]:
    """Full name and parameters' schemas of the deployment with a name, bare or full."""
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
    from prefect.settings import PREFECT_API_AUTH_STRING

    auth = PREFECT_API_AUTH_STRING.value()
    by_name = DeploymentFilter(name=DeploymentFilterName(any_=[name.rpartition("/")[2]]))
    try:
        async with PrefectClient(api_url, auth_string=auth) as client:
            found = await client.read_deployments(deployment_filter=by_name)
            known = {
                f"{(await client.read_flow(one.flow_id)).name}/{one.name}": one
                for one in found or await client.read_deployments()
            }
        full = full_name(name, list(known))
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
