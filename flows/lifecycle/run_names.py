"""Short names of flow runs, from what a run does and the last part of what it reads."""

from __future__ import annotations

from collections.abc import Callable

from prefect.runtime import flow_run


def run_name_from(verb: str, parameter: str) -> Callable[[], str]:
    """A flow's ``flow_run_name``: ``verb`` and the last part of the value of ``parameter``."""

    def name() -> str:
        return f"{verb}-{short_name(str(flow_run.parameters.get(parameter, '')))}"

    return name


def short_name(location: str) -> str:
    """The last part of a path or URI, with the part before it if that is needed to identify it.

    ``/data/raw/lyft`` is ``lyft``, ``models:/lyft-unet@champion`` is ``lyft-unet@champion``, and a
    dataset's folder ``outputs/datasets/lyft/1f0c2ab34d5e`` is ``lyft-1f0c2ab34d5e``.
    """
    scheme, is_uri, path = location.partition(":/")
    parts = (path if is_uri else location).split("/")
    parts = [part for part in parts if part not in ("", ".", "..")]
    is_model = is_uri and scheme == "models"
    is_version = len(parts) > 1 and len(parts[-1]) == 12 and parts[-1].isalnum()
    return "-".join(parts[-2 if is_model or is_version else -1 :]) or "unnamed"
