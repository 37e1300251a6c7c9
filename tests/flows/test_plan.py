"""Dry run of the whole flow: cached steps, estimates, parameters."""

import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs import ANY_MODEL, IN_MEMORY, SMALL

from flows.lifecycle.durations import ingest_key, record_duration, recorded_durations, train_key
from flows.plan import (
    _PREDICTED_WITH_ENCODER,
    _TRAINED_PER_S,
    _TRAINED_WITH_ENCODER,
    _estimate_inference,
    format_duration,
    format_size,
    main,
    plan,
    relative_cost,
    validated_parameters,
)
from runtime.errors import UserError
from runtime.table import table
from schemas.config import InferConfig, IngestConfig, TrainConfig
from schemas.manifest import load_manifest


@pytest.fixture(scope="module")
def done(scenes, dataset, trained, tmp_path_factory) -> dict:
    """Outputs of a whole run, assembled from the shared fixtures, and the plan's parameters."""
    from beam.infer.pipeline import run
    from beam.runners.run import pipeline_options

    output = tmp_path_factory.mktemp("planned")
    folder = Path(shutil.copytree(dataset, output / "datasets" / SMALL.name / dataset.name))
    run(
        trained.model,
        None,
        str(folder),
        str(output / "predictions"),
        InferConfig(),
        trained.tracking_uri,
        options=pipeline_options(IN_MEMORY),
    )
    return {
        "source": str(scenes),
        "output": str(output),
        "tracking_uri": trained.tracking_uri,
        "ingest_config": SMALL,
        "train_config": trained.config,
        "gate_config": ANY_MODEL,
    }


def _files(folder: str) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in Path(folder).rglob("*") if p.is_file()}


def test_first_run_plans_all_three_steps(done, tmp_path) -> None:
    new = {**done, "output": str(tmp_path), "tracking_uri": f"sqlite:///{tmp_path}/m/mlflow.db"}
    steps = plan(**new)
    assert [(step.name, step.action) for step in steps] == [
        ("ingest", "runs"),
        ("train", "runs"),
        ("infer", "runs"),
    ]
    size = sum(path.stat().st_size for path in Path(done["source"]).rglob("*.png"))
    assert steps[0].reads == f"40 pairs, {format_size(size)}"
    assert steps[1].reads == "32 images, 2 times"
    assert all(step.seconds > 0 and step.written > 0 for step in steps)
    assert {step.basis for step in steps} == {"docs/operate.md"}
    assert list(tmp_path.iterdir()) == []


def test_intact_published_output_is_cached(done) -> None:
    before = _files(done["output"])
    steps = plan(**done)
    assert [step.action for step in steps] == ["cached"] * 3
    assert sum(step.seconds for step in steps) == 0
    assert "models:/small-unet/1" in steps[1].writes
    assert _files(done["output"]) == before


def test_evaluations_are_between_training_and_inference(done, dataset, tmp_path) -> None:
    steps = plan(**done, evaluate_on=[str(dataset)], mask_files="coco")
    masks = steps.pop()
    assert (masks.name, masks.reads) == ("masks", steps[-1].reads)
    assert masks.writes == f"coco files in {done['output']}/masks"
    assert [step.name for step in steps] == ["ingest", "train", "evaluate", "infer"]
    assert (steps[2].action, steps[2].reads) == ("runs", "40 images of small")
    with pytest.raises(UserError, match="there is no such folder"):
        plan(**done, evaluate_on=[str(tmp_path / "none")])


def test_an_evaluation_that_is_logged_is_cached(done, dataset, monkeypatch) -> None:
    from model import registry

    def find(uri: str, name: str) -> str:
        return f"runs:/of {uri}/evaluations/{name}"

    monkeypatch.setattr(registry, "find_evaluation", find)
    steps = plan(**done, evaluate_on=[str(dataset)])
    assert [step.action for step in steps] == ["cached"] * 4
    name = f"small-{load_manifest(dataset).fingerprint[:12]}-all"
    logged = f"runs:/of models:/small-unet/1/evaluations/{name}"
    assert steps[2].writes == f"nothing; {logged} is logged"


def test_a_source_whose_name_is_taken_is_refused_as_by_the_run(done, scenes, tmp_path) -> None:
    """Its rows would replace those of another folder of this name."""
    output = Path(shutil.copytree(done["output"], tmp_path / "outputs"))
    taken = next((output / "predictions/masks").glob("model=*/version=*/source=*"))
    other = tmp_path / taken.name.removeprefix("source=")
    shutil.copytree(scenes, other)
    with pytest.raises(UserError, match="under the name of this source; name this source diff"):
        plan(**{**done, "output": str(output), "infer_source": str(other)})


def test_plan_shows_damaged_changed_and_replaced_output(done, tmp_path) -> None:
    output = Path(shutil.copytree(done["output"], tmp_path / "outputs"))
    here = {**done, "output": str(output)}

    other = plan(**here, infer_config=InferConfig(batch_size=3))
    assert [step.action for step in other] == ["cached", "cached", "replaces"]
    assert "version=v1" in other[2].writes
    assert other[2].basis == "last run, 40 items"

    longer = done["train_config"].model_copy(update={"epochs": 9})
    assert [step.action for step in plan(**{**here, "train_config": longer})] == [
        "cached",
        "runs",
        "runs",
    ]

    shard = next(output.glob("datasets/small/*/*train*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    damaged = plan(**here)
    assert [step.action for step in damaged] == ["runs", "runs", "runs"]
    assert "beside 1" in damaged[0].writes


def test_plan_uses_the_model_that_the_gate_would_leave(done, trained, dataset, tmp_path) -> None:
    import mlflow

    from model import registry, tracking
    from model.gate import NotPromotedError
    from model.plan import plan as plan_training

    # A store of its own, in which another version is champion: made of the same run's files.
    store = f"sqlite:///{shutil.copy(trained.tracking_uri.removeprefix('sqlite:///'), tmp_path)}"
    tracking.connect(store)
    client = mlflow.MlflowClient()
    first = client.get_model_version("small-unet", "1")
    # Not necessarily 2: other tests may have made and deleted versions of this model.
    other = client.create_model_version("small-unet", first.source, first.run_id).version
    key = plan_training(str(dataset), trained.config).key
    assert registry.find_trained("small-unet", key) == "models:/small-unet/1"
    client.set_registered_model_alias("small-unet", "champion", other)

    def planned(**gate) -> tuple[str, str]:
        config = ANY_MODEL.model_copy(update=gate)
        train, infer = plan(**{**done, "tracking_uri": store, "gate_config": config})[1:]
        return train.writes.partition(";")[0], infer.writes

    assert planned()[0] == "the gate's decision"
    assert "partitions of a new version" in planned()[1]
    assert planned(promote="never")[0] == "nothing"
    assert "version=v1/" in planned(promote="never")[1]
    assert planned(promote="always")[0] == "the gate's decision"
    assert "version=v1/" in planned(promote="always")[1]
    client.set_model_version_tag("small-unet", "1", "rolled_back", "true")
    assert planned()[0] == "nothing"
    assert f"version=v{other}/" in planned()[1]
    client.delete_registered_model_alias("small-unet", "champion")
    with pytest.raises(NotPromotedError, match=r"was not promoted: It was rolled back\."):
        planned()


def test_estimates_use_the_last_comparable_run(done, tmp_path) -> None:
    new = {**done, "output": str(tmp_path), "tracking_uri": f"sqlite:///{tmp_path}/m/mlflow.db"}
    record_duration(str(tmp_path), ingest_key(SMALL), 400, 42)
    record_duration(
        str(tmp_path), train_key(TrainConfig(architecture="unet", filters=512), 32, 48), 1, 9999
    )
    ingest, train, _ = plan(**new)
    # 2 s of start-up, and a tenth of a second for each of the 40 pairs.
    assert ingest.seconds == pytest.approx(6)
    assert ingest.basis == "last run, 400 items"
    assert train.basis == "docs/operate.md"
    elsewhere = plan(**new, train_on="gpu")[1]
    assert (elsewhere.seconds, elsewhere.basis) == (0, "not known for pool gpu")
    (tmp_path / "durations.json").write_text("{")
    assert recorded_durations(str(tmp_path)) == {}


def test_estimates_skip_runs_that_reused_all_images(tmp_path: Path) -> None:
    began = datetime(2026, 1, 1, tzinfo=UTC)
    for age, (version, reused, seconds) in enumerate([("v3", 60, 2), ("v2", 50, 7), ("v1", 0, 64)]):
        row = {"images_read": 60, "images_reused": reused, "started_at": began}
        row["finished_at"] = began + timedelta(seconds=seconds)
        file = tmp_path / f"runs/model=m/version={version}/source=s/run.parquet"
        file.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist([row]), file)
        os.utime(file, (1000 - age, 1000 - age))
    # From the run before the last one: 2 s of start-up, and 5 s for the ten images it predicted.
    assert _estimate_inference(str(tmp_path), 60, 1) == (32, "last run, 10 items")


def test_the_default_network_is_estimated_by_its_own_rates(tmp_path) -> None:
    """Of docs/training.md (115 images in 8.2 s) and docs/infer.md, at 192x256."""
    size = (192, 256)
    trained = _TRAINED_PER_S / relative_cost(TrainConfig(), *size, _TRAINED_WITH_ENCODER)
    assert trained == pytest.approx(115 / 8.2, rel=0.02)
    cost = relative_cost(TrainConfig(), *size, _PREDICTED_WITH_ENCODER)
    seconds, basis = _estimate_inference(str(tmp_path), 532, cost)
    assert (seconds, basis) == (pytest.approx(2 + 10, rel=0.01), "docs/operate.md")


@pytest.mark.parametrize(
    ("size", "filters", "seconds"),
    [
        # Rates measured in docs/training.md, docs/infer.md and docs/scale.md, plus the start-up.
        ((96, 128), 16, [2 + 40 / 245, 20 + 64 / 30.5, 2 + 40 / 169]),
        ((96, 128), 32, [2 + 40 / 245, 20 + 64 / 30.5 * 4, 2 + 40 / 70.3]),
        # With a small network, the time per image is mostly that of decoding.
        ((32, 48), 4, [2 + 40 / 245, 20 + 64 / 30.5 / 100, 2 + 40 * 0.0032]),
    ],
)
def test_estimates_without_a_run_use_measured_rates(done, size, filters, seconds, tmp_path) -> None:
    steps = plan(
        source=done["source"],
        output=str(tmp_path),
        tracking_uri=f"sqlite:///{tmp_path}/m/mlflow.db",
        ingest_config=SMALL.model_copy(update=dict(zip(("height", "width"), size, strict=True))),
        train_config=TrainConfig(architecture="unet", epochs=2, filters=filters),
    )
    assert [step.seconds for step in steps] == pytest.approx(seconds, rel=0.01)
    assert {step.basis for step in steps} == {"docs/operate.md"}
    with pytest.raises(UserError, match="holds images of any size, but a batch has one"):
        plan(source=done["source"], ingest_config=IngestConfig(height=0, width=0))


def test_invalid_parameters_are_refused_before_anything_is_read(tmp_path, job) -> None:
    for given, message in (
        ({"train_config": {"epochs": -1}}, r"^train_config\.epochs: .*greater than or equal to 0$"),
        ({"nonsense": 1}, r"^parameters \['nonsense'\] are unknown; expected .*'train_config'"),
    ):
        with pytest.raises(UserError, match=message):
            validated_parameters({"source": "x", **given})
    done = job("flows.plan", f"--source={tmp_path}/none")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: source")
    done = job("flows.plan", f"--source={tmp_path}", "--params={")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_the_command_prints_one_line_for_each_step(done, job) -> None:
    params = {
        key: done[key].model_dump() for key in ("ingest_config", "train_config", "gate_config")
    }
    found = job(
        "flows.plan",
        *(f"--{key}={done[key]}" for key in ("source", "output", "tracking_uri")),
        f"--params={json.dumps(params)}",
    )
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    assert [line.split()[:2] for line in found.stdout.splitlines()[1:4]] == [
        ["ingest", "cached"],
        ["train", "cached"],
        ["infer", "cached"],
    ]


def test_options_override_params(done, tmp_path, monkeypatch) -> None:
    params = {
        key: value if isinstance(value, str) else value.model_dump() for key, value in done.items()
    }
    source, given = f"--source={done['source']}", f"--params={json.dumps(params)}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")

    def actions(*arguments: str) -> list[str]:
        return [line.split()[1] for line in main([source, given, *arguments]).splitlines()[1:4]]

    assert actions() == ["cached"] * 3
    assert actions(f"--output={tmp_path}") == ["runs"] * 3
    assert actions(f"--tracking_uri=sqlite:///{tmp_path}/none.db") == ["cached", "runs", "runs"]


def test_columns_are_as_wide_as_their_cells() -> None:
    cells = ["class", "share"], [["Roads", "9.1%"], ["TrafficSigns", "34.82%"]]
    assert table(*cells).splitlines() == [
        "class         share",
        "Roads         9.1%",
        "TrafficSigns  34.82%",
    ]
    assert table(*cells, align_right=True).splitlines() == [
        "class          share",
        "Roads           9.1%",
        "TrafficSigns  34.82%",
    ]


def test_sizes_and_times_read_well() -> None:
    assert [format_size(size) for size in (12, 1_200, 34_500_000, 2.5e9)] == [
        "12 B",
        "1 kB",
        "34 MB",
        "2.5 GB",
    ]
    assert [format_duration(seconds) for seconds in (5, 600, 9000)] == ["5 s", "10 min", "2.5 h"]
