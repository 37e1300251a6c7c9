"""The whole flow on Prefect's ephemeral server; synthetic scenes; job processes."""

import argparse
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from inference import check_counts
from jobs import QUICK, RETRIED, ROOT, SMALL
from PIL import Image
from whole_flow import FLOW, MORE, ephemeral

from flows.lifecycle.job_process import JobCallbacks, JobError, run_job
from flows.lifecycle.summary import class_rows, class_summary
from flows.scenes import draw_scene, write_scenes
from runtime.command_line import add_config, config_from, to_arguments
from runtime.errors import UserError
from schemas.classes import load_taxonomy
from schemas.config import GateConfig, InferConfig, IngestConfig, TrainConfig


@pytest.mark.parametrize(
    "config",
    [
        IngestConfig(),
        TrainConfig(architecture="unet-dropout", channels=1),
        GateConfig(),
        InferConfig(source_name="x-1"),
    ],
)
def test_configs_round_trip_through_the_command_line(config) -> None:
    parser = argparse.ArgumentParser()
    add_config(parser, type(config))
    assert config_from(type(config), parser.parse_args(to_arguments(config))) == config
    assert config_from(type(config), parser.parse_args([])) == type(config)()


def test_scenes_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    lines: list[str] = []
    output = str(tmp_path / "a")
    done = run_job("flows.scenes", [f"--output={output}", "--count=40"], JobCallbacks(lines.append))
    assert done == (str(output), False)
    assert lines == ["scenes: 40/40 drawn"]
    write_scenes(str(tmp_path / "b"), 2)
    for folder in ("CameraRGB", "CameraSeg"):
        for name in ("000_0000.png", "000_0001.png"):
            first, second = (tmp_path / run / folder / name for run in "ab")
            assert first.read_bytes() == second.read_bytes()


def test_a_folder_of_other_scenes_is_not_taken_for_these(tmp_path: Path) -> None:
    place = str(tmp_path / "scenes")
    for count in (2, 3, 3):
        assert write_scenes(place, count, seed=1, width=80, height=60) == place
    for count, seed, width in ((2, 1, 80), (3, 2, 80), (3, 1, 96)):
        with pytest.raises(UserError, match="holds other scenes or files; remove it, or name"):
            write_scenes(place, count, seed, width, 60)
    assert len(list(Path(place).rglob("*.png"))) == 6


def test_scenes_hold_the_classes_of_a_street() -> None:
    found: set[int] = set()
    for seed in range(12):
        image, mask = draw_scene(seed)
        assert image.shape == mask.shape == (600, 800, 3)
        assert not mask[..., 1:].any()
        found |= {int(value) for value in np.unique(mask[..., 0])}
    taxonomy = load_taxonomy("carla-0.8")
    assert {taxonomy.names[class_id] for class_id in found} == set(taxonomy.names)


def test_job_exit_codes_become_user_or_job_errors() -> None:
    with pytest.raises(UserError, match="source '/none': there is no such folder"):
        run_job("beam.ingest", ["--source=/none", "--output=/none"], JobCallbacks(lambda _: None))
    with pytest.raises(JobError, match=r"No module named flows\.none"):
        run_job("flows.none", [], JobCallbacks(lambda _: None))


def test_flow_modules_import_nothing_heavy() -> None:
    script = (
        "import sys, flows.ingest_train_infer\n"
        "print(sorted({'tensorflow', 'keras', 'mlflow', 'apache_beam'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# One server, one training and six jobs: a minute on two cores.
def test_the_whole_flow(scenes: Path, prefect_home: Path, tmp_path: Path) -> None:
    """In a fresh interpreter, on Prefect's ephemeral server; then again, and with a mistake."""
    (tmp_path / "empty").mkdir()
    places = (scenes, tmp_path, tmp_path / "empty", tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-c", FLOW + MORE, *map(str, places)],
        cwd=ROOT,
        env=ephemeral(tmp_path, prefect_home),
        input=json.dumps([SMALL.model_dump(), QUICK]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results, again, mistake = (json.loads(line) for line in done.stdout.splitlines()[-3:])
    log, log_again, log_mistake = re.split("^(?:AGAIN|MISTAKE)$", done.stderr, flags=re.MULTILINE)
    predictions = Path(results["predictions"])
    truth = {}
    for path in (scenes / "CameraSeg").iterdir():
        red = Image.open(path).getchannel("R")
        truth[path.stem] = np.asarray(red.resize((48, 32), Image.Resampling.NEAREST))
    check_counts(predictions, truth)

    share = "FROM read_parquet('{}/class_stats/**/*.parquet') SELECT avg(pixel_fraction) WHERE {}"
    roads = duckdb.sql(share.format(predictions, "class_name = 'Roads'")).fetchall()[0][0]
    masks = pq.read_table(predictions / "masks")["mask"].to_pylist()
    counted = [(np.asarray(Image.open(io.BytesIO(m["bytes"]))) == 7).mean() for m in masks]
    assert roads == pytest.approx(np.mean(counted))

    rows = class_rows(class_summary(predictions, results["partition"]))
    assert results["artifacts"]["class-statistics"] == rows
    assert "Pedestrians" in {row["class"] for row in rows}
    drift = {row["class"]: row for row in results["artifacts"]["drift"]}
    assert drift["Roads"]["share now"] == next(
        row["pixel share"] for row in rows if row["class"] == "Roads"
    )
    assert 0 < float(drift["all classes"]["distance"]) < 1
    assert float(drift["mean confidence"]["share in validation"]) > 1 / 13
    for place in (results["dataset"], results["model"], results["predictions"]):
        assert f"`{place}`" in results["artifacts"]["results"]
    assert results["runs"] == [
        f"{name}:Completed" for name in ("infer", "ingest", "ingest", "train")
    ]
    for line in ("40 written", "epoch 1/1", "40 images read, 40 predicted"):
        assert line in log

    assert log_again.count("nothing has changed") == 4
    for key in ("dataset", "model", "predictions", "partition"):
        assert again[key] == results[key]

    files = sorted((tmp_path / "masks" / again["partition"]).rglob("*.png"))
    assert [path.stem for path in files] == sorted(truth)
    stored = {path.stem: np.asarray(Image.open(io.BytesIO(path.read_bytes()))) for path in files}
    assert all(mask.shape == (32, 48) and mask.max() < 13 for mask in stored.values())
    assert np.mean([(mask == 7).mean() for mask in stored.values()]) == pytest.approx(roads)

    assert mistake[0] == "Failed"
    assert "holds no pairs" in mistake[1]
    assert not RETRIED.search(log_mistake)
