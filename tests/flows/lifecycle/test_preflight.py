"""Preflight check of a run's parameters."""

from pathlib import Path

import pytest

from flows.ingest_train_infer import ingest_train_infer
from flows.lifecycle.preflight import check_parameters
from runtime.errors import UnavailableError, UserError
from schemas.config import GateConfig, IngestConfig, TrainConfig
from schemas.manifest import load_manifest

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


def test_preflight_refuses_inputs_that_later_steps_could_not_use(
    dataset: Path, tmp_path: Path, monkeypatch
) -> None:
    binary, none = TrainConfig(target="Roads"), str(tmp_path / "none")
    plain = IngestConfig(), TrainConfig(), GateConfig()
    for infer_source, evaluate_on, message in (
        (none, [], "infer_source '.*none': there is no such folder"),
        (None, [str(dataset), none], "dataset '.*none': there is no such folder"),
        (None, [str(tmp_path)], "has no manifest.json"),
    ):
        with pytest.raises(UserError, match=message):
            ingest_train_infer.fn("none", infer_source=infer_source, evaluate_on=evaluate_on)
    check_parameters(*plain, str(tmp_path), [str(dataset)])
    check_parameters(IngestConfig(), binary, GateConfig(), None, [str(dataset)])
    with pytest.raises(
        UserError, match=r"the dataset holds carla-0\.8, but the model is to predict"
    ):
        check_parameters(IngestConfig(void="7"), *plain[1:], None, [str(dataset)])
    changed = load_manifest(dataset)
    anysize = changed.config.model_copy(update={"height": 0, "width": 0})
    changed = changed.model_copy(update={"config": anysize})
    (tmp_path / "manifest.json").write_text(changed.model_dump_json())
    with pytest.raises(UserError, match="holds images of any size"):
        check_parameters(*plain, None, [str(tmp_path)])

    def unavailable(*_: str) -> None:
        raise UnavailableError("the store does not answer")

    monkeypatch.setattr("flows.lifecycle.preflight.require_folder", unavailable)
    check_parameters(*plain, "s3://none/none", [])
