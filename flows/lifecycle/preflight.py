"""Preflight check: refuses, before the first step, what a later step of the run would refuse."""

from __future__ import annotations

from model.decision import critical_classes
from model.plan import check_architecture, check_ingest, classes_of
from schemas.classes import load_taxonomy, with_void
from schemas.config import GateConfig, IngestConfig, TrainConfig


def check_parameters(ingest: IngestConfig, train: TrainConfig, gate: GateConfig) -> None:
    """Checks the parameters of a run against each other; reads no image.

    Raises:
        UserError: the training or the gate would refuse the dataset.
    """
    check_ingest(ingest)
    check_architecture(train)
    taxonomy = with_void(load_taxonomy(ingest.taxonomy), ingest.void)
    critical_classes(gate, classes_of(train, taxonomy)[0])
