import numpy as np
import pytest
from conftest import ANY_MODEL

from model.gate import Decision, decide, judge
from schemas.classes import ClassLabel, Taxonomy
from schemas.config import GateConfig
from schemas.errors import UserError
from schemas.stats import ConfusionMatrix

STREET = Taxonomy(
    name="street",
    classes=[
        ClassLabel(id=0, name="None", colour=(0, 0, 0)),
        ClassLabel(id=1, name="Roads", colour=(1, 1, 1)),
        ClassLabel(id=2, name="Vehicles", colour=(2, 2, 2)),
    ],
)


def _network(errors: dict[int, float], images: int = 40, seed: int = 0) -> np.ndarray:
    """Confusion matrices of a network that misses each class at a rate, for class 0."""
    random = np.random.default_rng(seed)
    truth = np.random.default_rng(9).integers(0, 3, (images, 400)).astype(np.uint8)
    found = truth.copy()
    for class_id, rate in errors.items():
        found[(truth == class_id) & (random.random(truth.shape) < rate)] = 0
    return np.stack([ConfusionMatrix.of(t, f, 3).counts for t, f in zip(truth, found, strict=True)])


def test_a_better_network_is_promoted_with_its_interval() -> None:
    worse, better = _network({1: 0.3, 2: 0.3}), _network({1: 0.1, 2: 0.1}, seed=1)
    decision = decide(better, worse, STREET, GateConfig())
    assert decision.promoted
    means = [ConfusionMatrix(one.sum(axis=0)).mean_iou() for one in (better, worse)]
    assert (decision.mean_iou, decision.champion_mean_iou) == pytest.approx(means)
    assert 0 < decision.low < means[0] - means[1] < decision.high
    assert set(decision.critical) == {"Roads", "Vehicles"}
    assert "interval" in decision.to_markdown("models:/m/2", "models:/m/1")


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    first, second = _network({1: 0.2}, 15), _network({1: 0.25}, 15, seed=1)
    decision = decide(first, second, STREET, GateConfig(confidence=0.9))
    random = np.random.default_rng(5)
    differences = []
    for _ in range(3000):
        chosen = random.integers(0, 15, 15)
        new, old = (ConfusionMatrix(one[chosen].sum(axis=0)).mean_iou() for one in (first, second))
        differences.append(new - old)
    low, high = np.quantile(differences, [0.05, 0.95])
    assert decision.low == pytest.approx(low, abs=2e-3)
    assert decision.high == pytest.approx(high, abs=2e-3)


def test_what_is_not_better_stays_challenger() -> None:
    worse, better = _network({1: 0.3}), _network({1: 0.1}, seed=1)
    same = decide(worse, worse, STREET, GateConfig())
    assert not same.promoted
    assert "not better by more than 0.005" in same.reason
    assert not decide(worse, better, STREET, GateConfig()).promoted
    assert (
        "not better by more than 0.5"
        in decide(better, worse, STREET, GateConfig(margin=0.5)).reason
    )
    # One image in forty: the mean is higher, but the interval does not say so.
    noisy = worse.copy()
    noisy[0] = better[0] * 30
    found = decide(noisy, worse, STREET, GateConfig(margin=0))
    assert found.mean_iou > found.champion_mean_iou
    assert not found.promoted


def test_a_critical_class_must_not_fall() -> None:
    champion = _network({1: 0.5, 2: 0.1})
    challenger = _network({1: 0.0, 2: 0.3}, seed=1)
    decision = decide(challenger, champion, STREET, GateConfig())
    assert decision.mean_iou > decision.champion_mean_iou
    assert not decision.promoted
    assert "more than 0.02 lost: Vehicles from" in decision.reason
    assert decide(challenger, champion, STREET, GateConfig(tolerance=0.5)).promoted
    assert decide(challenger, champion, STREET, GateConfig(critical="Roads,Unicorns")).promoted


def test_a_class_that_is_no_longer_found_has_fallen() -> None:
    champion = _network({})
    blind = champion.copy()
    blind[:, 0, 0] += blind[:, 2].sum(axis=-1)
    blind[:, 2] = blind[:, :, 2] = 0
    decision = decide(blind, champion, STREET, GateConfig())
    assert decision.critical["Vehicles"] == (1.0, None)
    assert "Vehicles from 1.0000 to 0.0000" in decision.reason


@pytest.mark.parametrize(("floor", "promoted"), [(0.5, True), (0.99, False)])
def test_a_first_version_needs_the_floor(floor: float, promoted: bool) -> None:
    decision = decide(_network({1: 0.3}), None, STREET, GateConfig(floor=floor))
    assert decision.promoted is promoted
    assert f"the floor of {floor}" in decision.reason


def test_versions_take_turns_and_roll_back(dataset, tmp_path) -> None:
    """Champion, a challenger refused, one promoted, and the way back, in a real registry."""
    import mlflow

    from model import tracking
    from model.gate import check_champion, main
    from model.plan import plan
    from model.train import run
    from schemas.config import TrainConfig

    store = f"sqlite:///{tmp_path}/mlflow.db"
    client = mlflow.MlflowClient(store)

    def train(gate: GateConfig, **changes) -> str:
        config = TrainConfig(
            **{"model_name": "turns", "epochs": 1, "filters": 2, "batch_size": 16, **changes}
        )
        return run(str(dataset), config, store, gate, state=str(tmp_path / "state"), reuse=True)

    def alias(name: str) -> str:
        return str(client.get_model_version_by_alias("turns", name).version)

    with pytest.raises(UserError, match=r"was not promoted: There is no champion; .* --promote"):
        train(GateConfig(floor=1))
    assert alias("challenger") == "1"
    # The same version again, under another gate: nothing is trained, only decided.
    assert train(ANY_MODEL) == "models:/turns/1"
    assert alias("champion") == "1"
    assert train(GateConfig(margin=1), seed=1) == "models:/turns/1"
    assert (alias("champion"), alias("challenger")) == ("1", "2")
    assert train(GateConfig(promote="always"), seed=1) == "models:/turns/2"
    assert train(GateConfig(promote="never"), seed=2) == "models:/turns/3"
    assert alias("champion") == "2"
    run_id = client.get_model_version("turns", "2").run_id
    decision = Decision(**mlflow.artifacts.load_dict(f"runs:/{run_id}/gate.json"))
    assert decision.promoted

    arguments = [f"--tracking_uri={store}"]
    assert main(["--rollback=turns", *arguments]) == "models:/turns/1"
    assert alias("champion") == "1"
    lines: list[str] = []
    chosen = plan(str(dataset), TrainConfig(model_name="turns"))
    assert judge("models:/turns/2", chosen, ANY_MODEL, lines.append) == "models:/turns/1"
    assert lines == ["not promoted: It was rolled back."]
    with pytest.raises(UserError, match="is the first champion"):
        main(["--rollback=turns", *arguments])
    with pytest.raises(UserError, match="has no champion to roll back"):
        main(["--rollback=nothing", *arguments])
    decided = main(["--model=models:/turns/3", f"--dataset={dataset}", "--margin=1", *arguments])
    assert decided == "models:/turns/1"
    assert alias("challenger") == "3"

    tracking.connect(store)
    roads, _ = chosen.taxonomy.told_from_rest(["Roads"])
    with pytest.raises(UserError, match="they cannot be compared"):
        check_champion("turns", roads)
