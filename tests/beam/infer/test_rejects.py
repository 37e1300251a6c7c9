"""Bad images become rejects; bad models and full disks give a one-line error and no output."""

import dataclasses
import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from inference import query, run_infer
from jobs import IN_MEMORY, ROOT, TWO_WORKERS, Job, on_small_disk
from mutants import mutants

from beam.infer import handler, plan, runs
from beam.infer import pipeline as infer
from beam.infer.engines.choice import choose_runtime
from beam.runners.run import pipeline_options
from flows.scenes import draw_scene
from images import png
from images.resize import resize_image
from runtime.errors import RejectError, UserError
from schemas.config import InferConfig

MUTANTS = 100


def _has_counts(output: Path, read: int, predicted: int) -> None:
    assert query(output, "FROM runs SELECT images_read, images_predicted, images_rejected") == [
        (read, predicted, read - predicted)
    ]


class _Failing:
    """An engine that fails on images whose first pixel is in a given set."""

    def __init__(self, engine, poison: set[bytes]) -> None:
        self._engine = engine
        self._poison = poison
        self.batch_size = engine.batch_size

    def predict(self, images):
        if {image.tobytes() for image in images} & self._poison:
            raise ValueError("a picture of the wrong kind")
        return self._engine.predict(images)

    def halve_batch(self) -> bool:
        return self._engine.halve_batch()


def test_an_image_that_fails_in_its_batch_is_the_only_reject(
    trained, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("000_0004", "000_0017")
    poison = {
        resize_image(
            png.decode_image((scenes / f"CameraRGB/{name}.png").read_bytes(), 1 << 31),
            *(32, 48, "nearest"),
        ).tobytes()
        for name in names
    }
    load = handler.load_engine
    monkeypatch.setattr(handler, "load_engine", lambda *a: _Failing(load(*a), poison))
    output = run_infer(trained, tmp_path / "out", InferConfig(batch_size=16), source=scenes)
    _has_counts(output, 40, 38)
    assert query(
        output, "FROM rejects SELECT image_id, source_uri, stage, code, message ORDER BY 1"
    ) == [
        (
            *(name, f"{scenes}/CameraRGB/{name}.png", "predict", "failed"),
            "ValueError: a picture of the wrong kind",
        )
        for name in names
    ]
    assert query(output, "FROM masks SELECT count(*)") == [(38,)]


def test_images_that_are_lost_stop_the_job(
    trained, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = handler.predict
    monkeypatch.setattr(handler, "predict", lambda *given: list(predict(*given))[1:])
    with pytest.raises(RuntimeError, match=r"40 images were read, but \d+ predicted and 0 rej"):
        run_infer(trained, tmp_path / "out", source=scenes)
    assert list((tmp_path / "out").iterdir()) == []


def _mutants(folder: Path) -> dict[str, str | None]:
    """Writes damaged PNGs; returns the reject code that the decoder gives each, by name."""
    expected: dict[str, str | None] = {}
    (folder / "CameraRGB").mkdir(parents=True)
    for index, (_, data) in enumerate(mutants(MUTANTS)):
        (folder / "CameraRGB" / f"{index:04d}.png").write_bytes(data)
        try:
            png.decode_image(data, InferConfig().max_pixels)
            expected[f"{index:04d}"] = None
        except RejectError as error:
            expected[f"{index:04d}"] = error.code
    return expected


def test_malformed_pngs_end_in_rejects(trained, tmp_path: Path) -> None:
    expected = _mutants(tmp_path / "raw")
    output = run_infer(trained, tmp_path / "out", source=tmp_path / "raw")
    rejects = query(output, "FROM rejects SELECT image_id, code, message, stage ORDER BY 1")
    assert dict(row[:2] for row in rejects) == {i: code for i, code in expected.items() if code}
    assert all(message and stage == "read" for *_, message, stage in rejects)
    predicted = {row[0] for row in query(output, "FROM masks SELECT image_id")}
    assert predicted == {i for i, code in expected.items() if code is None}
    assert len(rejects) > MUTANTS // 2
    _has_counts(output, MUTANTS, len(predicted))


def test_nothing_but_malformed_pngs_publishes_nothing(trained, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    for index in range(3):
        (tmp_path / f"raw/{index}.png").write_bytes(b"\x89PNG")
    (tmp_path / "raw/3.png").touch()
    reasons = r"no image of .* could be predicted: 3 format, 1 empty; .* the first: .*\d\.png: "
    with pytest.raises(UserError, match=reasons):
        run_infer(trained, tmp_path / "out", source=tmp_path / "raw")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_damaged_record_of_a_dataset_is_a_reject(trained, dataset: Path, tmp_path: Path) -> None:
    from schemas.example import encode, parse, read_records, write_record
    from schemas.manifest import load_manifest

    damaged = Path(shutil.copytree(dataset, tmp_path / "damaged"))
    name = load_manifest(damaged).shard_names("test")[0]
    with (damaged / name).open("rb") as file:
        examples = [parse(record) for record in read_records(file, name)]
    examples[0] = dataclasses.replace(examples[0], image=b"no PNG")
    with (damaged / name).open("wb") as file:
        for example in examples:
            write_record(file, encode(example))
    output = run_infer(trained, tmp_path / "out", InferConfig(split="test"), dataset=damaged)
    _has_counts(output, len(examples), len(examples) - 1)
    assert query(output, "FROM rejects SELECT image_id, stage, code") == [
        (examples[0].id, "read", "format")
    ]


def test_ids_never_leave_the_output(trained, tmp_path: Path) -> None:
    names = ["a b'\"", "…", "日本", "x=y&z", "%2e%2e", "-rf", "a..b"]
    image = png.encode(draw_scene(3, 48, 36)[0])
    (tmp_path / "raw/CameraRGB").mkdir(parents=True)
    for name in names:
        (tmp_path / f"raw/CameraRGB/{name}.png").write_bytes(image)
    output = run_infer(trained, tmp_path / "out", source=tmp_path / "raw")
    found = query(output, "FROM masks SELECT image_id, mask.path")
    assert sorted(found) == sorted((name, f"{name}.png") for name in names)
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "out"}
    assert {path.name for path in output.iterdir()} == set(runs.TABLES)


@pytest.mark.parametrize("options", [IN_MEMORY, []])
def test_a_full_disk_is_one_line(plain_model, scenes: Path, tmp_path: Path, options) -> None:
    output = tmp_path / "out"
    begin = on_small_disk(output, f'"$@"; code=$?; ls -A {output}; exit $code')
    places = (f"--model={plain_model}", f"--source={scenes}", f"--output={output}")
    done = subprocess.run(
        [*begin, sys.executable, "-m", "beam.infer", *places, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    # A worker that is still at work when the job fails may end by a signal, and Beam says so.
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "No space left on device" in errors[0]
    assert done.stdout == ""


def test_a_disk_that_fills_up_at_the_end_is_a_mistake_too(
    trained, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs, "write_run", full)
    with pytest.raises(UserError, match=r"^No space left on device; nothing was published$"):
        run_infer(trained, tmp_path / "out", source=scenes)
    assert list((tmp_path / "out").iterdir()) == []


def test_one_model_may_serve_all_processes(
    trained, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = run_infer(trained, tmp_path / "alone", source=scenes)
    # Each worker decides by the same figures, for the machine on which it runs.
    monkeypatch.setattr(
        plan,
        "choose_runtime",
        lambda *args: dataclasses.replace(choose_runtime(*args), model_bytes=1 << 60),
    )
    options = pipeline_options(TWO_WORKERS)
    arguments = (str(scenes), None, str(tmp_path / "out"), InferConfig(), trained.tracking_uri)
    shared = Path(infer.run(trained.model, *arguments, options=options))
    sql = "FROM class_stats SELECT image_id, class_id, pixel_count ORDER BY 1, 2"
    assert query(shared, sql) == query(alone, sql)
    _has_counts(shared, 40, 40)


def test_models_that_are_none_are_one_line(
    job: Job, job_here: Job, plain_model: Path, scenes: Path, tmp_path: Path
) -> None:
    import zipfile

    whole = plain_model.read_bytes()
    (tmp_path / "short.keras").write_bytes(whole[: len(whole) // 2])
    with zipfile.ZipFile(tmp_path / "empty.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    middle = len(whole) // 2
    (tmp_path / "flipped.keras").write_bytes(
        whole[:middle]
        + bytes(256 - b if b else 1 for b in whole[middle : middle + 64])
        + whole[middle + 64 :]
    )
    for run, name, engine, complaint in (
        (job_here, "short", "openvino", "expected a .keras archive"),
        # TensorFlow's own messages are seen in a process of its own, and in that of the export.
        (job, "empty", "tensorflow", "cannot be loaded"),
        (job_here, "flipped", "openvino", "cannot be loaded"),
    ):
        done = run(
            "beam.infer",
            f"--model={tmp_path}/{name}.keras",
            f"--source={scenes}",
            f"--output={tmp_path}/out",
            f"--engine={engine}",
            "--direct_num_workers=1",
        )
        errors = [line for line in done.stderr.splitlines() if not line.startswith("infer: ")]
        assert done.returncode == 2, (name, done.stderr)
        assert len(errors) == 1, (name, done.stderr)
        assert errors[0].startswith("error: model file ")
        assert complaint in errors[0]
        assert list((tmp_path / "out").iterdir()) == []


def test_a_network_that_fails_on_many_images_publishes_nothing(
    trained, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, calls = handler.load_engine, iter(range(1000))

    class Dying(_Failing):
        def predict(self, images):
            if next(calls) > 5:
                raise RuntimeError("the device is lost")
            return self._engine.predict(images)

    monkeypatch.setattr(handler, "load_engine", lambda *a: Dying(load(*a), set()))
    with pytest.raises(
        UserError,
        match=r"^the network failed on \d+ of 40 images, more than --max_failed_fraction=0.1 allows"
        r".*CameraRGB/.*\.png: failed: RuntimeError: the device is lost$",
    ):
        run_infer(trained, tmp_path / "out", source=scenes)
    assert list((tmp_path / "out").iterdir()) == []
