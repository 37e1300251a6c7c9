"""The promotion gate: bootstrap, critical classes, concurrent champions, rollback."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from ingesting import records_of
from jobs import ANY_MODEL, QUICK

from model.decision import Decision, decide
from model.gate import NotPromotedError, _champion_or_error, check_champion, main, run_gate
from model.groups import groups_of
from model.plan import plan
from model.train import run
from model.version_tags import FINGERPRINT_TAG, GATE_TAG, refusal_reason
from runtime.errors import UserError
from schemas.classes import ClassLabel, Taxonomy
from schemas.config import GateConfig
from schemas.manifest import load_manifest
from schemas.stats import ConfusionMatrix

STREET = Taxonomy(
    name="street",
    classes=[
        ClassLabel(id=0, name="None", colour=(0, 0, 0)),
        ClassLabel(id=1, name="Roads", colour=(1, 1, 1)),
        ClassLabel(id=2, name="Vehicles", colour=(2, 2, 2)),
    ],
)


def _decide(challenger, champion, config=GateConfig(), groups=None) -> Decision:
    """Decides with each image a group of its own, unless groups are named."""
    named = groups or [str(index) for index in range(len(challenger))]
    return decide(challenger, champion, STREET, config, named)


def _network(errors: dict[int, float], images: int = 40, seed: int = 0) -> np.ndarray:
    """Confusion matrices of a network that takes each class for class 0 at the given rate."""
    random = np.random.default_rng(seed)
    truth = np.random.default_rng(9).integers(0, 3, (images, 400)).astype(np.uint8)
    found = truth.copy()
    for class_id, rate in errors.items():
        found[(truth == class_id) & (random.random(truth.shape) < rate)] = 0
    return np.stack([ConfusionMatrix.of(t, f, 3).counts for t, f in zip(truth, found, strict=True)])


def test_a_better_network_is_promoted_with_its_interval() -> None:
    worse, better = _network({1: 0.3, 2: 0.3}), _network({1: 0.1, 2: 0.1}, seed=1)
    decision = _decide(better, worse)
    assert decision.promoted
    means = [ConfusionMatrix(one.sum(axis=0)).mean_iou() for one in (better, worse)]
    assert (decision.mean_iou, decision.champion_mean_iou) == pytest.approx(means)
    assert 0 < decision.low < means[0] - means[1] < decision.high
    assert set(decision.critical) == {"Roads", "Vehicles"}
    assert "interval" in decision.to_markdown("models:/m/2", "models:/m/1")


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    first, second = _network({1: 0.2}, 15), _network({1: 0.25}, 15, seed=1)
    decision = _decide(first, second, GateConfig(confidence=0.9))
    random = np.random.default_rng(5)
    differences = []
    for _ in range(3000):
        chosen = random.integers(0, 15, 15)
        new, old = (ConfusionMatrix(one[chosen].sum(axis=0)).mean_iou() for one in (first, second))
        differences.append(new - old)
    low, high = np.quantile(differences, [0.05, 0.95])
    assert decision.low == pytest.approx(low, abs=2e-3)
    assert decision.high == pytest.approx(high, abs=2e-3)


def test_a_version_that_is_not_better_is_not_promoted() -> None:
    worse, better = _network({1: 0.3}), _network({1: 0.1}, seed=1)
    same = _decide(worse, worse)
    assert not same.promoted
    assert "not better by more than 0.005" in same.reason
    assert not _decide(worse, better).promoted
    assert "not better by more than 0.5" in _decide(better, worse, GateConfig(margin=0.5)).reason
    # Only one image in forty is better: the mean is higher, but the interval includes zero.
    noisy = worse.copy()
    noisy[0] = better[0] * 30
    found = _decide(noisy, worse, GateConfig(margin=0))
    assert found.mean_iou > found.champion_mean_iou
    assert not found.promoted


def test_images_without_truth_are_not_drawn() -> None:
    """One group of three, or one image of three, is void: a 27th of the resamples would be."""
    worse, better = _network({1: 0.3}, 3), _network({1: 0.1}, 3, seed=1)
    worse[2] = better[2] = 0
    alone = _decide(better[:2], worse[:2])
    for groups in (None, ["street"] * 3):
        decision = _decide(better, worse, groups=groups)
        assert decision.promoted
        assert (decision.low, decision.high) == (alone.low, alone.high)
    assert "over 2 groups" in alone.reason
    nothing = np.zeros((2, 3, 3), np.int64)
    assert not _decide(nothing, nothing).promoted


def test_a_critical_class_must_not_fall() -> None:
    champion = _network({1: 0.5, 2: 0.1})
    challenger = _network({1: 0.0, 2: 0.3}, seed=1)
    decision = _decide(challenger, champion)
    assert decision.mean_iou > decision.champion_mean_iou
    assert not decision.promoted
    assert "more than 0.02 lost: Vehicles from" in decision.reason
    assert _decide(challenger, champion, GateConfig(tolerance=0.5)).promoted
    assert _decide(challenger, champion, GateConfig(critical="Roads")).promoted
    with pytest.raises(UserError, match="critical 'Unicorns': expected classes of taxonomy street"):
        _decide(challenger, champion, GateConfig(critical="Roads,Unicorns"))


def test_a_critical_class_that_no_test_image_shows_is_named() -> None:
    worse, better = _network({1: 0.3}), _network({1: 0.1}, seed=1)
    for counts in (worse, better):
        counts[:, 2] = 0
    said = "and no critical class falls; Vehicles not compared, since no test image shows it."
    assert _decide(better, worse, GateConfig(critical="Roads,Vehicles")).reason.endswith(said)
    for critical in ("", "Roads"):
        decision = _decide(better, worse, GateConfig(critical=critical))
        assert decision.reason.endswith("and no critical class falls.")


def test_a_critical_class_that_is_never_predicted_has_fallen() -> None:
    champion = _network({})
    blind = champion.copy()
    blind[:, 0, 0] += blind[:, 2].sum(axis=-1)
    blind[:, 2] = blind[:, :, 2] = 0
    decision = _decide(blind, champion)
    assert decision.critical["Vehicles"] == (1.0, None)
    assert "Vehicles from 1.0000 to 0.0000" in decision.reason


def test_the_bootstrap_draws_groups() -> None:
    """Forty images of four streets: the interval is that of a bootstrap over the streets."""
    worse, better = _network({1: 0.3, 2: 0.3}), _network({1: 0.2, 2: 0.3}, seed=1)
    better[:10] = worse[:10]
    streets = [f"street {index // 10}" for index in range(40)]
    found = _decide(better, worse, GateConfig(confidence=0.9), streets)
    random = np.random.default_rng(3)
    differences = []
    for _ in range(3000):
        chosen = (random.integers(0, 4, 4)[:, None] * 10 + np.arange(10)).ravel()
        new, old = (ConfusionMatrix(one[chosen].sum(axis=0)).mean_iou() for one in (better, worse))
        differences.append(new - old)
    low, high = np.quantile(differences, [0.05, 0.95])
    assert (found.low, found.high) == pytest.approx((low, high), abs=3e-3)
    alone = _decide(better, worse, GateConfig(confidence=0.9))
    assert found.high - found.low > 1.5 * (alone.high - alone.low)
    assert "over 4 groups" in found.reason
    assert "belong together: 4." in found.to_markdown("models:/m/2", "models:/m/1")
    # With one group, its images are all that can be drawn.
    one = _decide(better, worse, GateConfig(confidence=0.9), ["street"] * 40)
    assert (one.low, one.high) == pytest.approx((alone.low, alone.high), abs=1e-3)
    assert one.groups == 1


@pytest.mark.parametrize("champion", [True, False])
def test_a_test_split_of_one_class_promotes_nothing(champion: bool) -> None:
    better, worse = _network({}), _network({1: 0.3})
    for counts in (better, worse):
        counts[:, 0] = counts[:, 2] = 0
    decision = _decide(better, worse if champion else None, GateConfig(floor=0))
    assert not decision.promoted
    assert "fewer than two classes" in decision.reason
    with pytest.raises(NotPromotedError, match="Ingest pairs that show more, or --promote"):
        _champion_or_error("models:/m/1", None, decision.reason)


def test_groups_are_in_the_order_of_the_records(dataset: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        ids = [record.id for record in records_of(dataset, split)]
        rows = pq.read_table(dataset / "sources.parquet").to_pylist()
        groups = {row["id"]: row["group"] for row in rows}
        assert groups_of(str(dataset), split) == [groups[name] for name in ids]
    old = pq.read_table(dataset / "sources.parquet").drop_columns(["group", "offset"])
    pq.write_table(old, tmp_path / "sources.parquet")
    assert len(set(groups_of(str(tmp_path), "test"))) == 4


@pytest.mark.parametrize(("floor", "promoted"), [(0.5, True), (0.99, False)])
def test_a_first_version_needs_the_floor(floor: float, promoted: bool) -> None:
    decision = _decide(_network({1: 0.3}), None, GateConfig(floor=floor))
    assert decision.promoted is promoted
    assert f"the floor of {floor}" in decision.reason


class _Registry:
    """A registry in which the champion changes while a version is evaluated."""

    CHALLENGER = "challenger"

    def __init__(self, champions: list[str | None]) -> None:
        self.champions = champions
        self.concluded: list[tuple[str | None, bool]] = []

    def champion(self, _: str) -> str | None:
        return self.champions[0]

    def set_alias(self, uri: str, alias: str) -> None:
        assert (uri, alias) == ("models:/m/9", "challenger")

    def is_damaged(self, _: str) -> bool:
        return False

    def metadata(self, uri: str) -> dict[str, int]:
        return {"width": 48 if uri == "models:/m/9" else 96, "height": 32}

    def earlier_refusal(self, *_: object) -> None:
        return None

    def record_decision(
        self, _: str, champion: str | None, __: str, decision: Decision, ___: GateConfig
    ) -> bool:
        if len(self.champions) > 1:
            self.champions.pop(0)
        if self.champions[0] != champion:
            return False
        self.concluded.append((champion, decision.promoted))
        return True


@pytest.mark.parametrize(
    ("champions", "promoted", "told"),
    [
        (["models:/m/1", "models:/m/1"], True, 0),
        # The version beats the first champion, but not the one that replaced it meanwhile.
        (["models:/m/1", "models:/m/2", "models:/m/2"], False, 1),
        ([None, "models:/m/2", "models:/m/2"], False, 1),
        # The reverse, as after a rollback.
        (["models:/m/2", "models:/m/1", "models:/m/1"], True, 1),
        # Another process has already promoted the same version.
        (["models:/m/1", "models:/m/9"], True, 0),
    ],
)
def test_a_champion_that_changes_meanwhile_is_compared_with(
    monkeypatch, champions, promoted, told
) -> None:
    import model
    from model import gate

    # An earlier import of the real module leaves an attribute on the package.
    fake = _Registry(list(champions))
    monkeypatch.setitem(sys.modules, "model.registry", fake)
    monkeypatch.setattr(model, "registry", fake, raising=False)
    networks = {
        "models:/m/1": _network({1: 0.3}),
        "models:/m/2": _network({}, seed=1),
        "models:/m/9": _network({1: 0.1}, seed=2),
    }
    evaluated: list[str] = []

    def counts(uri: str, _: object) -> np.ndarray:
        evaluated.append(uri)
        return networks[uri]

    monkeypatch.setattr(gate, "_counts", counts)
    monkeypatch.setattr(gate, "groups_of", lambda *_: [str(index) for index in range(40)])
    monkeypatch.setattr(gate, "count_seen", lambda *_: 0)
    plan = SimpleNamespace(
        config=SimpleNamespace(model_name="m"),
        manifest=SimpleNamespace(fingerprint="f1"),
        taxonomy=STREET,
        folder="",
        input_size=lambda: {"width": 48, "height": 32},
    )
    lines: list[str] = []
    chosen = run_gate("models:/m/9", plan, GateConfig(), lines.append)
    assert chosen == ("models:/m/9" if promoted else "models:/m/2")
    assert evaluated.count("models:/m/9") == 1
    assert sum("the champion has changed meanwhile" in line for line in lines) == told
    if champions[-1] != "models:/m/9":
        assert f"{champions[-1]} was trained on 96x32, to which the images of 48x32" in lines[-1]
        assert "models:/m/9 was trained" not in lines[-1]
        assert fake.concluded == [(champions[-1], promoted)]


def test_a_refusal_holds_for_its_champion_dataset_and_config() -> None:
    """A decision on another dataset is made there, not repeated from the first."""
    earlier = {"against": "m/1", "gate": ANY_MODEL.sha256(), "promoted": False, "reason": "Worse."}
    named = {GATE_TAG: json.dumps(earlier | {"dataset": "f1"}), FINGERPRINT_TAG: "f0"}
    assert refusal_reason(named, "m/1", "f1", ANY_MODEL) == "Worse."
    for changed in (
        ("m/2", "f1", ANY_MODEL),
        ("m/1", "f0", ANY_MODEL),
        ("m/1", "f1", GateConfig()),
    ):
        assert refusal_reason(named, *changed) is None
    # Decisions of earlier versions, which did not name the dataset, were on the version's own.
    unnamed = {GATE_TAG: json.dumps(earlier), FINGERPRINT_TAG: "f0"}
    assert refusal_reason(unnamed, "m/1", "f0", ANY_MODEL) == "Worse."
    assert refusal_reason(unnamed, "m/1", "f1", ANY_MODEL) is None


def _renamed(dataset: Path, folder: Path) -> Path:
    """The same dataset with other class names."""
    manifest = load_manifest(dataset)
    plain = manifest.taxonomy.model_dump()
    for label in plain["classes"]:
        label["name"] += "s"
    taxonomy = Taxonomy(**plain | {"name": "other"})
    changed = manifest.model_copy(update={"taxonomy": taxonomy, "taxonomy_sha256": taxonomy.sha256})
    (folder / "renamed").mkdir()
    (folder / "renamed/manifest.json").write_text(changed.model_dump_json())
    return folder / "renamed"


# Slow: four trainings in a registry of their own.
def test_versions_take_turns_and_roll_back(dataset, tmp_path) -> None:
    """A champion, a refused challenger, a promoted one and a rollback, in a real registry."""
    import mlflow

    from model import registry, tracking
    from schemas.config import TrainConfig

    store = f"sqlite:///{tmp_path}/mlflow.db"
    client = mlflow.MlflowClient(store)

    def train(gate: GateConfig, **changes) -> str:
        config = TrainConfig(**{**QUICK, "model_name": "turns", "batch_size": 16, **changes})
        return run(str(dataset), config, store, gate, state=str(tmp_path / "state"), reuse=True)

    def alias(name: str) -> str:
        return str(client.get_model_version_by_alias("turns", name).version)

    with pytest.raises(UserError, match=r"was not promoted: There is no champion; .* --promote"):
        train(GateConfig(floor=1))
    assert alias("challenger") == "1"
    # The same version again with another gate: only the decision is made, nothing is trained.
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
    # A decision against a version that is no longer champion changes no alias.
    tracking.connect(store)
    assert not registry.record_decision(
        "models:/turns/3", "models:/turns/1", "f1", decision, ANY_MODEL
    )
    assert alias("champion") == "2"

    arguments = [f"--tracking_uri={store}"]
    assert main(["--rollback=turns", *arguments]) == "models:/turns/1"
    assert alias("champion") == "1"
    lines: list[str] = []
    chosen = plan(str(dataset), TrainConfig(model_name="turns"))
    assert run_gate("models:/turns/2", chosen, ANY_MODEL, lines.append) == "models:/turns/1"
    assert lines == ["not promoted: It was rolled back."]
    with pytest.raises(UserError, match="is the first champion"):
        main(["--rollback=turns", *arguments])
    with pytest.raises(UserError, match="has no champion to roll back"):
        main(["--rollback=nothing", *arguments])
    decide_on = [f"--dataset={dataset}", "--margin=1", *arguments]
    assert main(["--model=models:/turns/3", *decide_on]) == "models:/turns/1"
    assert alias("challenger") == "3"
    assert main(["--model=models:/turns@challenger", *decide_on]) == "models:/turns/1"
    for nothing in ("models:/turns@nobody", "models:/turns/77", "models:/turns", "unet.keras"):
        with pytest.raises(UserError, match="expected models:/<name>/<version> or"):
            main([f"--model={nothing}", *decide_on])
    with pytest.raises(
        UserError, match=r"predicts taxonomy carla-0\.8, but dataset .* holds other"
    ):
        main(["--model=models:/turns/3", f"--dataset={_renamed(dataset, tmp_path)}", *arguments])

    roads, _ = chosen.taxonomy.one_vs_rest(["Roads"])
    with pytest.raises(UserError, match="they cannot be compared"):
        check_champion("turns", roads)
    # Another kind of model under the same name, promoted on request, needs no comparison.
    assert train(GateConfig(promote="always"), target="Roads") == "models:/turns/4"
    client.set_registered_model_alias("turns", "champion", "1")
    again = [f"--dataset={dataset}", *arguments]
    with pytest.raises(UserError, match="they cannot be compared"):
        main(["--model=models:/turns/4", *again])
    assert main(["--model=models:/turns/4", "--promote=always", *again]) == "models:/turns/4"
    assert alias("champion") == "4"
