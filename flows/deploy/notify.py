"""Tells an address of every run of these deployments that fails or crashes, as one JSON object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from runtime.errors import UserError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

OFF = "off"
"""In place of an address: tell nobody any more."""

AUTOMATION = "Notify of failed runs"
_BLOCK = "lyft-notify"

_PAYLOAD = """{
  "text": {{ (flow.name ~ ", run " ~ flow_run.name ~ ": " ~ flow_run.state.name ~ ": "
    ~ flow_run.state.message) | tojson }},
  "flow": {{ flow.name | tojson }},
  "run": {{ flow_run.name | tojson }},
  "state": {{ flow_run.state.name | tojson }},
  "reason": {{ flow_run.state.message | tojson }},
  "url": {{ flow_run | ui_url | tojson }}
}"""
"""Chat services that take webhooks, show ``text``."""


def check_address(address: str) -> None:
    """Refuses what is no address.

    Raises:
        UserError: it is neither ``off`` nor an http address; the message does not repeat it, since
            it may contain a token.
    """
    parts = urlsplit(address)
    if address not in ("", OFF) and not (parts.scheme in ("http", "https") and parts.hostname):
        raise UserError("--notify: expected http://…, https://… or off")


def notify(
    address: str,
    deployments: Sequence[str],
    client: SyncPrefectClient,
    environment: Mapping[str, str],
) -> None:
    """Sets the address that is told, or none; replaces an earlier one.

    Prefect's server keeps the address encrypted, and makes the requests.

    Args:
        address: for a POST of JSON, or ``off``.
        deployments: as ``flow/deployment``; only their runs are told of.
        client: client of the server.
        environment: names the same server, as environment variables of Prefect.
    """
    from prefect.blocks.webhook import Webhook
    from prefect.events.actions import CallWebhook
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.settings import (
        PREFECT_API_AUTH_STRING,
        PREFECT_API_URL,
        temporary_settings,
    )

    known = client.read_automations_by_name(AUTOMATION)
    if address == OFF:
        for one in known:
            client.delete_automation(one.id)
        return
    server = {
        PREFECT_API_URL: environment["PREFECT_API_URL"],
        PREFECT_API_AUTH_STRING: environment.get("PREFECT_API_AUTH_STRING"),
    }
    with temporary_settings(server):
        block = Webhook(url=address, headers={"Content-Type": "application/json"}).save(
            _BLOCK, overwrite=True
        )
    ids = [client.read_deployment_by_name(name).id for name in deployments]
    automation = AutomationCore(
        name=AUTOMATION,
        description="Posts JSON to the address of `--notify` when a run fails or crashes.",
        enabled=True,
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={f"prefect.flow-run.{state}" for state in ("Failed", "Crashed", "TimedOut")},
            match_related={
                "prefect.resource.role": "deployment",
                "prefect.resource.id": [f"prefect.deployment.{one}" for one in ids],
            },
            for_each={"prefect.resource.id"},
            threshold=1,
        ),
        actions=[CallWebhook(block_document_id=block, payload=_PAYLOAD)],
    )
    if known:
        client.update_automation(known[0].id, automation)
    else:
        client.create_automation(automation)
