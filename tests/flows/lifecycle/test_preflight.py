"""Preflight check of a run's parameters."""

import pytest

from flows.ingest_train_infer import ingest_train_infer
from flows.lifecycle.preflight import check_parameters
from runtime.errors import UserError
from schemas.config import GateConfig, IngestConfig, TrainConfig

MISTAKES = [
    ({"height": 0, "width": 0}, {}, {}, "holds images of any size"),
    ({"test": 0}, {}, {}, "is to have no test split, but a training needs each"),
    ({"validation": 0, "test": 0}, {}, {}, "no validation and no test split"),
    ({}, {"target": "Unicorns"}, {}, "target 'Unicorns': expected some, not all, of the classes"),
    ({}, {"architecture": "unet-Xception"}, {}, "architecture 'unet-Xception': expected unet, "),
    ({}, {}, {"critical": "Road"}, "critical 'Road': expected classes of taxonomy carla-0.8"),
    ({}, {"target": "Roads"}, {"critical": "Vehicles"}, "critical 'Vehicles'"),
    ({"taxonomy": "none"}, {}, {}, "taxonomy 'none'"),
]


@pytest.mark.parametrize(("ingest", "train", "gate", "message"), MISTAKES)
def test_preflight_refuses_incompatible_parameters(ingest, train, gate, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_parameters(IngestConfig(**ingest), TrainConfig(**train), GateConfig(**gate))


def test_preflight_accepts_compatible_parameters() -> None:
    check_parameters(IngestConfig(), TrainConfig(), GateConfig())
    gate = GateConfig(critical="Vehicles, Roads")
    check_parameters(IngestConfig(), TrainConfig(), gate)
    binary = TrainConfig(target="Roads,RoadLines")
    check_parameters(IngestConfig(), binary, GateConfig(critical="RoadLines+Roads"))


def test_preflight_runs_before_any_input_is_read() -> None:
    with pytest.raises(UserError, match="critical 'Unicorns'"):
        # The flow's function, without Prefect; the source does not exist, which is not noticed.
        ingest_train_infer.fn("none", gate_config=GateConfig(critical="Unicorns"))
