"""The inference job end to end: rows, lineage, reruns, other workers, errors in one line."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from inference import CLASSES, check_counts, query, run_infer, tables_of
from jobs import IN_MEMORY, TWO_WORKERS, Job, Trained
from PIL import Image

from beam.infer import pipeline as infer
from beam.infer.model_uri import ResolvedModel, resolve_model
from beam.infer.pictures import Picture, read_shard
from beam.infer.runs import TABLES
from beam.runners.run import pipeline_options
from runtime.errors import UserError
from schemas.classes import load_taxonomy
from schemas.config import InferConfig, TrainConfig
from schemas.example import parse, read_records, write_record
from schemas.layout import SPLITS
from schemas.manifest import load_manifest


def _content(output: Path) -> list[tuple]:
    """All rows, without what identifies the run."""
    masks = query(output, "FROM masks SELECT * EXCLUDE run_id ORDER BY image_id")
    classes = query(output, "FROM class_stats SELECT * EXCLUDE run_id ORDER BY image_id, class_id")
    return [*masks, *classes]


def _truth_of_dataset(dataset: Path) -> dict[str, np.ndarray]:
    truth = {}
    for split in SPLITS:
        for name in load_manifest(dataset).shard_names(split):
            with (dataset / name).open("rb") as file:
                for record in read_records(file, name):
                    example = parse(record)
                    truth[example.id] = np.asarray(Image.open(io.BytesIO(example.mask)))
    return truth


def test_a_dataset(trained, dataset: Path, tmp_path: Path) -> None:
    output = run_infer(trained, tmp_path, dataset=dataset)
    check_counts(output, _truth_of_dataset(dataset))
    assert query(output, "FROM masks SELECT split, count(*) GROUP BY ALL ORDER BY ALL") == [
        ("test", 4),
        ("train", 32),
        ("validation", 4),
    ]
    (run,) = query(
        output,
        "FROM runs SELECT images_read, images_predicted, images_rejected, dataset_fingerprint,"
        " training_fingerprint, model, version, source",
    )
    fingerprint = load_manifest(dataset).fingerprint
    source = f"small-{fingerprint[:8]}"
    assert run == (40, 40, 0, fingerprint, fingerprint, "small-unet", trained.version, source)


def test_the_lineage_of_a_row(trained, dataset: Path, scenes: Path, tmp_path: Path) -> None:
    output = run_infer(trained, tmp_path, dataset=dataset)
    ((uri, fingerprint, mlflow_run),) = query(
        output,
        "FROM class_stats JOIN masks USING (image_id, run_id) JOIN runs USING (run_id)"
        " SELECT masks.source_uri, dataset_fingerprint, mlflow_run_id"
        " WHERE class_name = 'Roads' ORDER BY pixel_fraction DESC LIMIT 1",
    )
    assert Path(uri).parent == scenes / "CameraRGB"
    assert Path(uri).is_file()
    assert fingerprint == load_manifest(dataset).fingerprint
    assert len(mlflow_run) == 32


def test_masks_are_palette_pictures_in_the_class_colours(trained, dataset, tmp_path) -> None:
    output = run_infer(trained, tmp_path, InferConfig(split="test"), dataset=dataset)
    taxonomy = load_taxonomy("carla-0.8")
    for data, path, image_id in query(output, "FROM masks SELECT mask.bytes, mask.path, image_id"):
        image = Image.open(io.BytesIO(data))
        assert image.mode == "P"
        assert path == f"{image_id}.png"
        coloured = np.asarray(image.convert("RGB"))
        ids = np.asarray(image)
        for label in taxonomy.classes:
            assert (coloured[ids == label.id] == label.colour).all()


def test_raw_pngs_with_and_without_truth(trained, scenes: Path, tmp_path: Path, capsys) -> None:
    raw = Path(shutil.copytree(scenes, tmp_path / "raw"))
    (raw / "CameraSeg/000_0001.png").unlink()
    (raw / "CameraSeg/000_0002.png").write_bytes(b"")
    (raw / "CameraRGB/000_0003.png").write_bytes(b"")
    output = run_infer(trained, tmp_path / "out", source=raw)
    truth = {
        path.stem: np.asarray(Image.open(path))[..., 0] for path in (scenes / "CameraSeg").iterdir()
    }
    assert query(output, "FROM runs SELECT images_read, images_predicted, images_rejected") == [
        (40, 39, 1)
    ]
    without = query(output, "FROM masks SELECT image_id WHERE pixel_accuracy IS NULL ORDER BY 1")
    assert without == [("000_0001",), ("000_0002",)]
    assert query(output, "FROM class_stats SELECT count(*) WHERE intersection IS NULL") == [
        (2 * CLASSES,)
    ]
    assert query(output, "FROM rejects SELECT image_id, stage, code ORDER BY ALL") == [
        ("000_0002", "truth", "empty"),
        ("000_0003", "read", "empty"),
    ]
    for name in ("000_0001", "000_0002", "000_0003"):
        del truth[name]
    # The image counts as predicted, so the number of rejects does not tell of its mask.
    mask = raw / "CameraSeg/000_0002.png"
    warning = f"warning: masks that are rejects give no truth: 1 empty; the first: {mask}: "
    assert warning in capsys.readouterr().err
    # Masks have the size of the PNGs, not the model's.
    assert {mask.shape for mask in truth.values()} == {(120, 160)}
    check_counts(output, truth)


def test_a_plain_folder_of_pngs(trained, scenes: Path, tmp_path: Path) -> None:
    output = run_infer(trained, tmp_path, source=scenes / "CameraRGB")
    assert query(output, "FROM masks SELECT count(*), any_value(source)") == [(40, "CameraRGB")]


def test_running_twice_leaves_the_same_rows_once(
    trained, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = run_infer(trained, tmp_path, dataset=dataset)
    before = _content(output)
    # Output of another configuration of the same model and source replaces the first.
    run_infer(trained, tmp_path, InferConfig(part_mib=0.005), dataset=dataset)
    assert len(list(output.glob("masks/**/*.parquet"))) > 3
    assert _content(output) == before
    run_infer(trained, tmp_path, dataset=dataset)
    assert _content(output) == before
    monkeypatch.setattr(infer, "run_pipeline", lambda *_: pytest.fail("a pipeline ran"))
    run_infer(trained, tmp_path, dataset=dataset)
    assert {path.name for path in output.iterdir()} == set(TABLES)


def test_a_damaged_table_is_written_anew(trained, dataset: Path, tmp_path: Path) -> None:
    output = run_infer(trained, tmp_path, dataset=dataset)
    before = _content(output)
    next(output.glob("class_stats/**/*.parquet")).write_bytes(b"damaged")
    run_infer(trained, tmp_path, dataset=dataset)
    assert _content(output) == before


def test_workers_do_not_change_a_byte(trained, dataset: Path, tmp_path: Path) -> None:
    """One worker, in this process, and two processes."""
    config = InferConfig(part_mib=0.005)
    one = tables_of(run_infer(trained, tmp_path / "one", config, dataset=dataset))
    output, options = str(tmp_path / "two"), pipeline_options(TWO_WORKERS)
    arguments = (trained.model, None, str(dataset), output, config, trained.tracking_uri)
    two = tables_of(Path(infer.run(*arguments, options=options)))
    assert one == two
    assert len(one) > len(TABLES)


def test_mistakes_end_in_one_line_and_code_2(
    job: Job, job_here: Job, trained, dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong.keras").write_bytes(b"no archive")
    (tmp_path / "file").touch()
    store = f"--tracking_uri={trained.tracking_uri}"
    model, output = f"--model={trained.model}", f"--output={tmp_path}"
    data = f"--dataset={dataset}"
    for run, arguments, complaint in (
        # In a process of its own, for the exit code; so MLflow's own messages are seen, too.
        (job, ("--model=models:/small-unet@none", data, output, store), "cannot be found"),
        (job_here, ("--model=models:/none/1", data, output, store), "cannot be found"),
        (job_here, ("--model=models:/none/latest", data, output, store), "no version of that"),
        (
            job_here,
            ("--model=models:/small-unet", data, output, store),
            "such as models:/small-unet@champion, or /latest",
        ),
        (
            job_here,
            (f"--model=models:/m-{'0' * 32}", data, output, store),
            "is the id of a logged model",
        ),
        (
            job_here,
            (model, data, output, f"--tracking_uri=sqlite:///{tmp_path}/x.db"),
            "no such file",
        ),
        (job_here, (f"--model={tmp_path}/none.keras", data, output), "found no such file"),
        (job_here, (f"--model={tmp_path}/wrong.keras", data, output), "expected a .keras archive"),
        (job_here, (model, f"--dataset={tmp_path}/empty", output, store), "has no manifest.json"),
        (job_here, (model, f"--dataset={tmp_path}/none", output, store), "there is no such folder"),
        (job_here, (model, f"--source={tmp_path}/empty", output, store), "holds no PNG image"),
        (job_here, (model, output, store), "or --dataset, found neither"),
        (job_here, (model, f"--source={dataset}", output, store), "pass it as --dataset"),
        (
            job_here,
            (model, data, output, store, "--source_name=abc-"),
            "source_name: String should match",
        ),
        (job_here, (model, data, f"--output={tmp_path}/file", store), "is not writable"),
    ):
        done = run("beam.infer", *arguments)
        assert done.returncode == 2, done.stderr
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1, done.stderr
        assert complaint in done.stderr
    assert not (tmp_path / "x.db").exists()


def test_another_source_of_the_same_name_is_refused(trained, scenes, tmp_path) -> None:
    for name in ("a", "b"):
        shutil.copytree(scenes / "CameraRGB", tmp_path / name / "pictures")
    output = run_infer(trained, tmp_path / "out", source=tmp_path / "a/pictures")
    with pytest.raises(UserError, match="name this source differently with --source_name"):
        run_infer(trained, tmp_path / "out", source=tmp_path / "b/pictures")
    run_infer(
        trained, tmp_path / "out", InferConfig(source_name="b"), source=tmp_path / "b/pictures"
    )
    assert query(output, "FROM masks SELECT source, count(*) GROUP BY ALL ORDER BY ALL") == [
        ("b", 40),
        ("pictures", 40),
    ]


def test_the_latest_version_is_the_one_with_the_highest_number(trained) -> None:
    import mlflow

    name, _, number = trained.model.removeprefix("models:/").partition("/")
    client = mlflow.MlflowClient(trained.tracking_uri)
    first = client.get_model_version(name, number)
    # As text, 9 comes after 10.
    newest = [client.create_model_version(name, first.source, first.run_id) for _ in range(9)][-1]
    found = resolve_model(f"models:/{name}/latest", InferConfig(), trained.tracking_uri)
    assert found.version == f"v{newest.version}" == "v10"
    for one in range(2, 11):
        client.delete_model_version(name, str(one))


def test_another_model_of_the_same_name_is_refused(
    trained, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second MLflow store begins to count versions anew."""
    output = run_infer(trained, tmp_path, source=scenes)
    before = tables_of(output)
    other = lambda *args: replace(resolve_model(*args), sha256="0" * 64)  # noqa: E731
    monkeypatch.setattr("beam.infer.plan.resolve_model", other)
    complaint = r"rows of another model under the name small-unet v1: .*found 000000000000"
    with pytest.raises(UserError, match=complaint):
        run_infer(trained, tmp_path, source=scenes)
    assert tables_of(output) == before


def test_splits_of_a_dataset_stand_beside_each_other(trained, dataset, tmp_path) -> None:
    for split in ("test", "validation"):
        output = run_infer(trained, tmp_path, InferConfig(split=split), dataset=dataset)
    assert query(output, "FROM masks SELECT split, count(*) GROUP BY ALL ORDER BY ALL") == [
        ("test", 4),
        ("validation", 4),
    ]


def test_a_keras_file_must_fit_its_taxonomy(dataset: Path, tmp_path: Path) -> None:
    from model.export import export_openvino
    from model.unet import unet

    path = tmp_path / "other.keras"
    unet(23, filters=2).save(path)
    export_openvino(path, tmp_path / "openvino")

    def run(**config) -> Path:
        model = Trained(str(path), "", TrainConfig())
        return run_infer(model, tmp_path / "out", InferConfig(**config), dataset=dataset)

    for engine in ("openvino", "tensorflow"):
        with pytest.raises(
            UserError, match=r"expected logits of 13 classes for .*, found 23; name the --taxonomy"
        ):
            run(engine=engine)
    assert list((tmp_path / "out").iterdir()) == []
    path.write_bytes((dataset / "card.png").read_bytes())
    with pytest.raises(UserError, match=r"expected a \.keras archive"):
        run()


def test_windows_predict_each_pixel_of_the_image_itself(scenes: Path, tmp_path: Path) -> None:
    """A network that sees single pixels gives the same classes in any window."""
    import keras

    from model.export import export_openvino

    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, None, 3))
    centred = keras.layers.Rescaling(1 / 255, offset=-0.5)(inputs)
    network = keras.Model(inputs, keras.layers.Conv2D(CLASSES, 1)(centred))
    path = tmp_path / "pixels.keras"
    network.save(path)
    export_openvino(path, tmp_path / "openvino")
    config = InferConfig(height=32, width=48, windows="on", precision="float32")
    output = run_infer(
        Trained(str(path), "", TrainConfig()), tmp_path / "out", config, source=scenes
    )
    rows = query(output, "FROM masks SELECT source_uri, mask.bytes ORDER BY image_id LIMIT 3")
    assert len(rows) == 3
    for uri, mask in rows:
        image = np.asarray(Image.open(uri).convert("RGB"))
        expected = np.argmax(network(image[None].astype(np.float32)), axis=-1)[0]
        assert len(np.unique(expected)) > 2
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(mask))), expected)


def test_a_damaged_shard_is_named(trained, dataset: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(dataset, tmp_path / "damaged"))
    name = load_manifest(damaged).shard_names("test")[0]
    (damaged / name).write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"shard {name} cannot be read"):
        run_infer(trained, tmp_path / "out", dataset=damaged)


def test_a_shard_is_read_one_record_at_a_time(dataset: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(dataset, tmp_path / "damaged"))
    name = load_manifest(damaged).shard_names("train")[0]
    data = (damaged / name).read_bytes()
    (damaged / name).write_bytes(data[:-1])
    model = ResolvedModel("", "m", "v1", "", "", load_taxonomy("carla-0.8"), 32, 48, "nearest")
    pictures = read_shard(str(damaged), "train", name, model)
    assert isinstance(next(pictures), Picture)
    with pytest.raises(UserError, match=f"shard {name} cannot be read"):
        list(pictures)


def test_a_model_of_another_taxonomy_is_refused(trained, scenes: Path, tmp_path: Path) -> None:
    from jobs import SMALL

    from beam.ingest import pipeline as ingest

    config = SMALL.model_copy(update={"taxonomy": "lyft-challenge"})
    other = ingest.run(str(scenes), str(tmp_path), config, pipeline_options(IN_MEMORY))
    with pytest.raises(UserError, match=r"predicts taxonomy carla-0\.8, but dataset"):
        run_infer(trained, tmp_path / "out", dataset=other)


@pytest.mark.parametrize("lost", ["sources", "record"])
def test_an_incomplete_dataset_is_named(trained, dataset: Path, tmp_path: Path, lost: str) -> None:
    damaged = Path(shutil.copytree(dataset, tmp_path / "damaged"))
    name = load_manifest(damaged).shard_names("test")[0]
    if lost == "sources":
        (damaged / "sources.parquet").unlink()
        complaint = r"sources\.parquet cannot be read"
    else:
        with (damaged / name).open("rb") as file:
            records = list(read_records(file, name))
        with (damaged / name).open("wb") as file:
            for record in records[1:]:
                write_record(file, record)
        complaint = rf"shard {name} cannot be read \(expected {len(records)} records, found"
    with pytest.raises(UserError, match=complaint):
        run_infer(trained, tmp_path / "out", dataset=damaged)
    assert list((tmp_path / "out").iterdir()) == []


def test_all_tables_are_compressed_with_zstd(trained, scenes: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    output = run_infer(trained, tmp_path / "out", source=scenes)
    for table in TABLES:
        (file,) = output.glob(f"{table}/**/*.parquet")
        metadata = pq.read_metadata(file)
        groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
        codecs = {group.column(0).compression for group in groups}
        # Nothing was rejected.
        assert codecs == (set() if table == "rejects" else {"ZSTD"}), table


def test_an_alias_that_moves_meanwhile_names_one_version(
    trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    mlflow.set_tracking_uri(trained.tracking_uri)
    client = mlflow.MlflowClient()
    first = client.get_model_version("small-unet", trained.version.removeprefix("v"))
    second = client.create_model_version("small-unet", first.source, first.run_id)
    client.set_registered_model_alias("small-unet", "moving", first.version)
    download = mlflow.artifacts.download_artifacts
    downloads: list[str] = []

    def moved(uri: str, **options):
        downloads.append(uri)
        client.set_registered_model_alias("small-unet", "moving", second.version)
        return download(uri, **options)

    # As for files that are not on this machine.
    monkeypatch.setattr("beam.infer.model_uri._from_local_registry", lambda *_: None)
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", moved)
    try:
        found = resolve_model("models:/small-unet@moving", InferConfig(), trained.tracking_uri)
    finally:
        client.delete_registered_model_alias("small-unet", "moving")
        client.delete_model_version("small-unet", second.version)
    assert downloads == [found.uri] == [f"models:/small-unet/{first.version}"]
