"""Aliases and tags of registered versions, by which trainings and the gate know earlier results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from runtime.storage import file_sha256
from schemas.config import GateConfig

CHAMPION, CHALLENGER = "champion", "challenger"

KEY_TAG, CONFIG_TAG, FILES_TAG = "train_key", "train_config", "files_sha256"
FINGERPRINT_TAG = "dataset_fingerprint"
BEFORE_TAG, ROLLED_BACK_TAG, GATE_TAG = "champion_before", "rolled_back", "gate"

DECISION = "gate.md"
"""File of the gate's last decision, in the run that made the version."""


def checksums(folder: Path) -> str:
    """SHA-256 of all files in a folder, by path below it, as JSON."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return json.dumps({path.relative_to(folder).as_posix(): file_sha256(path) for path in files})


def refusal_reason(
    tags: Mapping[str, str], champion_uri: str | None, fingerprint: str, config: GateConfig
) -> str | None:
    """Why the gate refuses a version with these tags without evaluating it; None if it does not.

    It was rolled back, or refused before against the same champion, on the same dataset, with the
    same config.
    """
    if ROLLED_BACK_TAG in tags:
        return "It was rolled back."
    earlier = json.loads(tags.get(GATE_TAG, "{}"))
    # Decisions of earlier versions do not name the dataset; nearly all are on the version's own.
    dataset = earlier.get("dataset", tags.get(FINGERPRINT_TAG))
    found = (earlier.get("against"), dataset, earlier.get("gate"))
    same = found == (champion_uri, fingerprint, config.sha256())
    return str(earlier["reason"]) if same and not earlier["promoted"] else None
