"""Notifications: a webhook gets a JSON object for every run that fails, crashes or times out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from runtime.errors import UserError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

OFF = "off"
"""In place of a URL: removes the webhook."""

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
"""Template of the request's body; chat services show ``text``."""


def check_webhook_url(url: str) -> None:
    """Checks the value of ``--notify``.

    Raises:
        UserError: it is neither empty, ``off`` nor an http URL; the message does not repeat it,
            since it may contain a token.
    """
    parts = urlsplit(url)
    if url not in ("", OFF) and not (parts.scheme in ("http", "https") and parts.hostname):
        raise UserError("--notify: expected http://…, https://… or off")


def set_webhook(
    url: str,
    deployments: Sequence[str],
    client: SyncPrefectClient,
    environment: Mapping[str, str],
) -> None:
    """Sets the webhook in place of an earlier one, or removes it.

    Prefect's server keeps the URL encrypted, and makes the requests.

    Args:
        url: receives a POST of JSON; ``off`` removes the webhook.
        deployments: as ``flow/deployment``; the webhook is for their runs only.
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

    existing = client.read_automations_by_name(AUTOMATION)
    if url == OFF:
        for old in existing:
            client.delete_automation(old.id)
        return
    server = {
        PREFECT_API_URL: environment["PREFECT_API_URL"],
        PREFECT_API_AUTH_STRING: environment.get("PREFECT_API_AUTH_STRING"),
    }
    with temporary_settings(server):
        webhook = Webhook(url=url, headers={"Content-Type": "application/json"})
        block = webhook.save(_BLOCK, overwrite=True)
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
                "prefect.resource.id": [f"prefect.deployment.{id_}" for id_ in ids],
            },
            for_each={"prefect.resource.id"},
            threshold=1,
        ),
        actions=[CallWebhook(block_document_id=block, payload=_PAYLOAD)],
    )
    if existing:
        client.update_automation(existing[0].id, automation)
    else:
        client.create_automation(automation)
