"""Preflight check: refuses, before the first step, what a later step of the run would refuse."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from model.decision import critical_classes
from model.plan import check_architecture, check_ingest, check_size, classes_of
from runtime.errors import UnavailableError, UserError
from runtime.storage import require_folder
from schemas.classes import Taxonomy, load_taxonomy, with_void
from schemas.config import GateConfig, IngestConfig, TrainConfig
from schemas.manifest import load_manifest


def check_parameters(
    ingest: IngestConfig,
    train: TrainConfig,
    gate: GateConfig,
    infer_source: str | None = None,
    evaluate_on: Sequence[str] = (),
) -> None:
    """Checks the parameters of a run against each other; reads no image.

    Raises:
        UserError: the training or the gate would refuse the dataset, there are no images to predict
            on, or the model could not be evaluated on a dataset.
    """
    check_ingest(ingest)
    check_architecture(train)
    taxonomy = with_void(load_taxonomy(ingest.taxonomy), ingest.void)
    own = classes_of(train, taxonomy)[0]
    critical_classes(gate, own)
    # A store that does not answer now may do so later, when the step that reads it is retried.
    with suppress(UnavailableError):
        if infer_source:
            require_folder(infer_source, "infer_source")
        for dataset in evaluate_on:
            _check_evaluation(dataset, train, own)


def _check_evaluation(dataset: str, train: TrainConfig, own: Taxonomy) -> None:
    manifest = load_manifest(dataset)
    check_size(manifest.config)
    other = classes_of(train, manifest.taxonomy)[0]
    if other.mapping_sha256 != own.mapping_sha256:
        raise UserError(
            f"evaluate_on {dataset!r}: the dataset holds {other.name}, but the model is to predict "
            f"{own.name}: their classes differ; name datasets of the same classes"
        )
