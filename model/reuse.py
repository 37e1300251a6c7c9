"""Finds the result of ``python -m model.train --reuse`` if nothing is left to do, without MLflow.

It only reads the registry. If anything must be written, repaired or explained to a user, the result
is None, and the training takes its usual way through ``model.registry`` and ``model.gate``.
"""

from __future__ import annotations

import shutil
from contextlib import suppress

from model.checkpoint import discard
from model.plan import REGISTERED, Plan
from model.version_tags import (
    CHALLENGER,
    CHAMPION,
    DECISION,
    FILES_TAG,
    KEY_TAG,
    checksums,
    refusal_reason,
)
from runtime.command_line import UP_TO_DATE, Log
from runtime.mlflow_registry import NotReadError, Registry, Version, local_folder, registry
from schemas.classes import Taxonomy
from schemas.config import GateConfig


def find_reusable_result(
    chosen: Plan,
    gate: GateConfig,
    tracking_uri: str,
    state: str,
    decision: str | None,
    log: Log,
) -> str | None:
    """URI of the version to predict with, or None if reading does not suffice.

    Verifies the same as ``registry.find_trained`` and ``gate.run_gate``: the checksums of the
    version's files, the end of its run, the champion and the decision against it.

    Args:
        state: folder of unfinished trainings, from which this one's is removed.
        decision: file to which the gate's decision is copied, if there is one.
    """
    # Only MLflow can resolve an alias of initial weights: ``registry.with_pinned_start``.
    if chosen.config.start_from.startswith(REGISTERED):
        return None
    name = chosen.config.model_name
    try:
        with registry(tracking_uri) as opened:
            found = opened.versions_by_tag(name, KEY_TAG, chosen.key)[0]
            status, files = opened.run(found.run_id)
            if status != "FINISHED" or not _is_intact(found):
                return None
            result, refusal = _gate_result(
                opened, found, gate, chosen.taxonomy, chosen.manifest.fingerprint
            )
    # ValueError: a tag or the metadata has another form.
    except (NotReadError, IndexError, ValueError):
        return None
    if result is None:
        return None
    log(f"{UP_TO_DATE}: {found.uri} was trained on this dataset with this configuration")
    if refusal:
        log(f"not promoted: {refusal}")
    discard(state, chosen.key)
    if decision:
        # It is only for display.
        with suppress(NotReadError, OSError):
            shutil.copy(local_folder(files) / DECISION, decision)
    return result


def _is_intact(version: Version) -> bool:
    """Whether the files have the checksums that were recorded when they were registered."""
    recorded = version.tags.get(FILES_TAG)
    return bool(version.description) and recorded == checksums(version.folder / "artifacts")


def _gate_result(
    opened: Registry, version: Version, gate: GateConfig, taxonomy: Taxonomy, fingerprint: str
) -> tuple[str | None, str]:
    """What ``gate.run_gate`` returns if it would only read, and the reason if it refuses."""
    try:
        champion = opened.version_by_alias(version.name, CHAMPION)
    except NotReadError:
        return None, ""
    if gate.promote == "gate":
        other = Taxonomy.model_validate(champion.description["metadata"]["taxonomy"])
        if other.mapping_sha256 != taxonomy.mapping_sha256:
            return None, ""
    if gate.promote == "never" or champion.uri == version.uri:
        return version.uri, ""
    challenger = opened.version_by_alias(version.name, CHALLENGER)
    reason = refusal_reason(version.tags, champion.uri, fingerprint, gate)
    if gate.promote == "always" or challenger.uri != version.uri or not reason:
        return None, ""
    return champion.uri, reason
