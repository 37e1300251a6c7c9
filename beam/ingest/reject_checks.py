"""Refuses a dataset with too many rejects, and suggests the option that helps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from beam.ingest.records import REDUNDANT_CODES
from beam.ingest.remedies import advise_pairing, remedy
from beam.shared.crash_journal import CRASHED
from runtime import storage
from runtime.command_line import log
from runtime.errors import UserError
from runtime.parquet import read_table
from runtime.storage import join
from schemas.layout import REJECTS
from schemas.manifest import Manifest

_EXAMPLES = 3
"""Number of rejects that a failed job prints for each reason."""


def check_rejects(manifest: Manifest, staged: str) -> None:
    """Refuses a dataset that has no records or too many rejects; prints examples.

    Raises:
        UserError: names the share, the bound and the count of each reason.
    """
    share, bound = reject_fraction(manifest), manifest.config.max_reject_fraction
    if manifest.records and share <= bound:
        return
    rejects = read_table(join(staged, REJECTS)).to_pylist()
    # Without records, pairs that were left out for others are part of the reason.
    counts = _lost(manifest) if manifest.records else manifest.rejects
    for code, count in counts.items():
        log(f"{count:>8,}  {code}")
        for row in [row for row in rejects if row["code"] == code][:_EXAMPLES]:
            log(f"{'':10}{row['source_uri']}: {row['message']}")
    reasons = ", ".join(f"{count} {code}" for code, count in counts.items())
    advice = advice_on(manifest, rejects)
    if not manifest.records:
        raise UserError(f"no usable pair in {manifest.source!r}: {reasons}{advice}")
    raise UserError(
        f"{share:.1%} of the inputs are rejects ({reasons}), more than "
        f"--max_reject_fraction={bound}; nothing was published{advice}"
    )


def reject_fraction(manifest: Manifest) -> float:
    """Fraction of the inputs that were lost; duplicates and leaks do not count."""
    lost = sum(_lost(manifest).values())
    return lost / max(1, lost + manifest.records)


def _lost(manifest: Manifest) -> dict[str, int]:
    """Number of rejects by code, without duplicates and leaks."""
    return {code: n for code, n in manifest.rejects.items() if code not in REDUNDANT_CODES}


def advice_on(manifest: Manifest, rejects: Sequence[dict[str, Any]]) -> str:
    """Advice on the fault that more than half of the pairs share; empty if there is none."""

    def paths(code: str) -> list[str]:
        return [row["source_uri"] for row in rejects if row["code"] == code]

    counts = dict(manifest.rejects)
    # An image and a mask that do not find each other are one pair.
    unpaired = max(counts.pop("no_mask", 0), counts.pop("no_image", 0))
    half = (manifest.records + sum(counts.values()) + unpaired) / 2
    code, count = max(counts.items(), key=lambda item: item[1], default=("", 0))
    advice = ""
    if unpaired > half:
        advice = advise_pairing(paths("no_mask"), paths("no_image"))
    elif count > half and code not in (CRASHED, "too_large"):
        with suppress(OSError):
            advice = remedy(code, storage.read_bytes(paths(code)[0]), manifest.taxonomy)
    return f"; {advice}" if advice else ""
