"""Names of flow runs: what a run does, short enough for a list of runs."""

from __future__ import annotations

from collections.abc import Callable

from prefect.runtime import flow_run

_DATASET_PARTS = 2


def named(verb: str, parameter: str) -> Callable[[], str]:
    """A flow's ``flow_run_name``: ``verb`` and the end of the value of ``parameter``."""

    def name() -> str:
        return f"{verb}-{short(str(flow_run.parameters.get(parameter, '')))}"

    return name


def short(place: str) -> str:
    """The part at the end of a folder or model URI that identifies it.

    ``/data/raw/lyft`` is ``lyft``, ``models:/lyft-unet@champion`` is ``lyft-unet@champion``, and a
    dataset's folder ``outputs/datasets/lyft/1f0c2ab34d5e`` is ``lyft-1f0c2ab34d5e``.
    """
    scheme, is_uri, path = place.partition(":/")
    parts = [part for part in (path if is_uri else place).split("/") if part not in ("", ".", "..")]
    is_model = is_uri and scheme == "models"
    is_version = len(parts) > 1 and len(parts[-1]) == 12 and parts[-1].isalnum()
    return "-".join(parts[-_DATASET_PARTS if is_model or is_version else -1 :]) or "unnamed"
