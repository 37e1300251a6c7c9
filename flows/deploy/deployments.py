"""Sets up a Prefect server's work pools, deployments and automations: ``python -m flows.deploy``.

PREFECT_API_URL names the server and PREFECT_API_AUTH_STRING holds its credentials for basic auth.
Running the command again brings the server up to date.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from flows.deploy.notify import check_webhook_url, set_webhook
from runtime import storage
from runtime.command_line import Parser
from runtime.errors import UserError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

POOLS = ("cpu", "gpu")
PROJECT = Path(__file__).parents[2]
AUTOMATIONS = "flows/deploy/automations.yaml"


def deploy(
    tracking_uri: str, environment: Mapping[str, str], raw: str = "", webhook: str = ""
) -> list[str]:
    """Creates missing work pools and automations, and applies prefect.yaml.

    Other deployments on the server are left as they are.

    Args:
        tracking_uri: MLflow's server, as workers reach it; set on every deployment of prefect.yaml
            that has this parameter.
        environment: environment variables of Prefect's command line; PREFECT_API_URL names the
            server.
        raw: folder or URI of the raw pairs; set on the deployments for which prefect.yaml names a
            source, unless it is empty.
        webhook: URL that is notified of failed runs, or ``off``; empty changes nothing.

    Returns:
        Names of the deployments, as ``flow/deployment``.

    Raises:
        UserError: Prefect does not answer, or refuses; the message includes its reply.
    """
    import httpx

    try:
        _add_pools(environment)
        _prefect(["deploy", "--all"], environment)
        # Comes before anything else that can fail: a deployment without the tracking URI would
        # train into another store.
        names = _set_parameters(tracking_uri, raw, environment)
        _add_automations(environment)
        if webhook:
            with _client(environment) as client:
                set_webhook(webhook, names, client, environment)
    except httpx.HTTPError as error:
        reply = str(error).partition("\n")[0]
        raise UserError(
            f"Prefect at {environment['PREFECT_API_URL']} refuses the deployment: {reply}; "
            "PREFECT_API_URL and PREFECT_API_AUTH_STRING must be the server's"
        ) from error
    return names


def _prefect(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *arguments],
        cwd=PROJECT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise UserError(f"prefect {' '.join(arguments)} failed:\n{done.stdout.strip()}")


def _add_pools(environment: Mapping[str, str]) -> None:
    """Creates the work pools that are missing, as `prefect work-pool create` does, but in one go.

    Each command of Prefect takes more than a second to start.
    """
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    with _client(environment) as client:
        known = {pool.name for pool in client.read_work_pools()}
        for name in POOLS:
            pool = WorkPoolCreate(name=name, type="process", base_job_template=template)
            if name not in known:
                # Another deployment may create it meanwhile.
                with suppress(ObjectAlreadyExists):
                    client.create_work_pool(pool)


def _add_automations(environment: Mapping[str, str]) -> None:
    """Creates the automations that mark dead runs as crashed, unless their names exist already."""
    import yaml
    from prefect.events.schemas.automations import AutomationCore

    automations = yaml.safe_load((PROJECT / AUTOMATIONS).read_text(encoding="utf-8"))
    with _client(environment) as client:
        for automation in automations:
            if not client.read_automations_by_name(automation["name"]):
                client.create_automation(AutomationCore.model_validate(automation))


def _set_parameters(tracking_uri: str, raw: str, environment: Mapping[str, str]) -> list[str]:
    """Sets these parameters on the deployments of prefect.yaml; returns the deployments' names."""
    from prefect.client.schemas.actions import DeploymentUpdate

    names = deployment_names()
    with _client(environment) as client:
        for name in names:
            deployment = client.read_deployment_by_name(name)
            parameters = dict(deployment.parameters)
            if "tracking_uri" in (deployment.parameter_openapi_schema or {}).get("properties", {}):
                parameters["tracking_uri"] = tracking_uri
            if raw and "source" in parameters:
                parameters["source"] = raw
            client.update_deployment(deployment.id, DeploymentUpdate(parameters=parameters))
    return names


def deployment_names() -> list[str]:
    """The deployments of prefect.yaml as ``flow/deployment``; each is named like its flow."""
    import yaml

    config = yaml.safe_load((PROJECT / "prefect.yaml").read_text(encoding="utf-8"))
    return sorted(f"{entry['name']}/{entry['name']}" for entry in config["deployments"])


def _client(environment: Mapping[str, str]) -> SyncPrefectClient:
    from prefect.client.orchestration import SyncPrefectClient

    return SyncPrefectClient(
        environment["PREFECT_API_URL"], auth_string=environment.get("PREFECT_API_AUTH_STRING")
    )


def add_notify_option(parser: Parser) -> None:
    """Adds ``--notify``."""
    parser.add_argument(
        "--notify",
        default="",
        help="URL that gets a POST of JSON when a run fails or crashes; off: notifies nobody",
    )


def main(arguments: Sequence[str]) -> str:
    """The command line; returns what is deployed.

    Raises:
        UserError: no server is named, or it does not answer, or it refuses.
    """
    parser = Parser(prog="python -m flows.deploy", description=__doc__)
    parser.add_argument(
        "--tracking_uri", required=True, help="MLflow's server, as workers reach it"
    )
    parser.add_argument(
        "--raw", default="", help="raw pairs of the nightly run (default: that of prefect.yaml)"
    )
    add_notify_option(parser)
    args = parser.parse_args(arguments)
    check_webhook_url(args.notify)
    if not (server := os.environ.get("PREFECT_API_URL")):
        raise UserError("no server is named; set PREFECT_API_URL, or start one with make up")
    environment = {**os.environ, "PREFECT_CLI_PROMPT": "false"}
    raw = args.raw and storage.absolute(args.raw)
    names = deploy(args.tracking_uri, environment, raw, args.notify)
    return f"deployed to {server}: {', '.join(names)}"
