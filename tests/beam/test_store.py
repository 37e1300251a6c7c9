"""Both jobs with all paths on a real store: what they publish, and when it becomes visible."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from jobs import IN_MEMORY, SMALL, SMALL_ARGUMENTS, TWO_WORKERS, Job, started
from kills import Killed
from servers import until
from store import VERSION, Store, binary

from beam.infer import pipeline as infer
from beam.infer.runs import TABLES
from beam.ingest import pipeline as ingest
from beam.ingest.incremental import published_versions
from beam.ingest.records import Recipe
from beam.runners.run import pipeline_options
from beam.shared import staging
from runtime import listing, storage
from runtime.errors import UserError
from runtime.parquet import read_table
from schemas import published
from schemas.classes import load_taxonomy
from schemas.config import InferConfig, IngestConfig
from schemas.manifest import load_manifest
from schemas.software import of_records


@pytest.fixture(scope="module")
def raw(bucket: Store, scenes: Path) -> str:
    return bucket.put(scenes, "raw")


@pytest.fixture(scope="module")
def on_store(bucket: Store, raw: str) -> str:
    """The dataset of the scenes, published on the store."""
    return _ingest(raw, bucket.uri("datasets"))


def _ingest(source: str, output: str) -> str:
    return ingest.run(source, output, SMALL, pipeline_options(IN_MEMORY))


def _infer(plain_model: Path, dataset: str, output: str, part_mib: float = 0.02) -> str:
    config = InferConfig(height=32, width=48, part_mib=part_mib, source_name="small")
    options = pipeline_options(IN_MEMORY)
    return infer.run(str(plain_model), None, dataset, output, config, options=options)


def _rows(root: str) -> dict[str, list[dict]]:
    """Rows of each table, from the files that the runs name, without what differs between runs."""
    found: dict[str, list[dict]] = {}
    for table in TABLES:
        files = [
            file
            for partition in sorted(published.partitions(root))
            for file in published.files_of(root, table, partition)
        ]
        rows = [row for file in files for row in read_table(file).to_pylist()]
        for row in rows:
            for name in ("run_id", "source_uri", "started_at", "finished_at", "images_reused"):
                row.pop(name, None)
        found[table] = sorted(rows, key=lambda row: json.dumps(row, default=str, sort_keys=True))
    return found


def test_the_server_is_kept_beside_other_tools(tmp_path: Path, monkeypatch) -> None:
    kept = tmp_path / f"versitygw-{VERSION}"
    kept.touch()
    monkeypatch.setenv("LYFT_TOOLS", str(tmp_path))
    assert binary() == kept


def test_shards_are_those_of_this_machine(bucket, raw, on_store, dataset: Path) -> None:
    name = on_store.rpartition("/")[2]
    assert name == dataset.name
    found = bucket.files("datasets/small", name)
    # These contain the source's path or the modification times of its files.
    other = {"manifest.json", "sources.parquet", "rejects.parquet", "card.md"}
    expected = {path.name: storage.file_sha256(path) for path in dataset.iterdir()}
    assert found.keys() == expected.keys()
    assert [name for name in expected if name not in other and found[name] != expected[name]] == []
    remote, reference = load_manifest(on_store), load_manifest(dataset)
    assert remote.source == raw
    changed = {"source": remote.source, "files": remote.files}
    assert remote == reference.model_copy(update=changed)
    # No hidden file is left: no staging, no probe.
    assert set(bucket.files("datasets")) == {f"small/{name}/{file}" for file in expected}


def test_workers_of_their_own_publish_the_same(bucket, raw: str, on_store: str) -> None:
    options = pipeline_options(TWO_WORKERS)
    again = ingest.run(raw, bucket.uri("workers"), SMALL, options)
    assert bucket.files("workers/small") == bucket.files("datasets/small")
    assert load_manifest(again) == load_manifest(on_store)


def test_real_pairs(bucket: Store, real: Path, real_dataset: Path) -> None:
    options, config = pipeline_options(TWO_WORKERS), IngestConfig()
    remote = ingest.run(bucket.put(real, "real"), bucket.uri("real-datasets"), config, options)
    assert load_manifest(remote).shards == load_manifest(real_dataset).shards
    for shard in load_manifest(remote).shards:
        assert storage.file_sha256(storage.join(remote, shard.name)) == shard.sha256


def test_what_has_not_changed_is_taken_over(bucket, scenes: Path, capsys) -> None:
    raw, output = bucket.put(scenes, "growing"), bucket.uri("again")
    first = _ingest(raw, output)
    assert _ingest(raw, output) == first
    assert "nothing has changed" in capsys.readouterr().err
    damaged = load_manifest(first).shards[0].name
    whole = storage.read_bytes(storage.join(first, damaged))
    storage.write_bytes(storage.join(first, damaged), b"damaged")
    capsys.readouterr()
    assert _ingest(raw, output) == first
    assert "8 kept" in capsys.readouterr().err
    assert storage.read_bytes(storage.join(first, damaged)) == whole
    for folder in ("CameraRGB", "CameraSeg"):
        data = storage.read_bytes(storage.join(raw, folder, "000_0000.png"))
        storage.write_bytes(storage.join(raw, folder, "more_0001.png"), data + b"\0")
    second = _ingest(raw, output)
    assert second != first
    assert load_manifest(second).records == 41
    assert "1 read, 40 kept" in capsys.readouterr().err


def test_a_version_is_there_when_its_manifest_is(bucket, raw: str, monkeypatch) -> None:
    recipe = Recipe(raw, SMALL, load_taxonomy(SMALL.taxonomy), of_records())
    output = bucket.uri("killed")
    copies: list[str] = []

    def until(call: int) -> Callable[[str, str], None]:
        def copy(source: str, target: str) -> None:
            copies.append(target)
            if len(copies) >= call:
                raise Killed
            storage_copy(source, target)

        return copy

    storage_copy = storage.copy
    # The first copies the listing to where workers see it.
    for call in (1, 5, 11):
        copies.clear()
        with monkeypatch.context() as patch:
            patch.setattr(storage, "copy", until(call))
            with pytest.raises(Killed):
                _ingest(raw, output)
        assert published_versions(storage.join(output, "small"), recipe) == []
    # All files but the last, the manifest, were copied to their final place.
    assert copies[-1].endswith("/manifest.json")
    version = copies[-1].removesuffix("/manifest.json")
    assert len(listing.files(version)) == 9
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        load_manifest(version)
    assert _ingest(raw, output) == version
    assert load_manifest(version).records == 40


def test_tables_are_those_of_this_machine(
    bucket, on_store, dataset, plain_model, tmp_path, capsys
) -> None:
    output = _infer(plain_model, on_store, bucket.uri("predictions"))
    local = _infer(plain_model, str(dataset), str(tmp_path))
    remote, reference = _rows(output), _rows(local)
    assert len(reference["masks"]) == 40
    for table in TABLES:
        assert remote[table] == reference[table], table
    (partition,) = published.partitions(output)
    files = [file for table in TABLES for file in published.files_of(output, table, partition)]
    found = {bucket.uri("predictions", path) for path in bucket.files("predictions")}
    assert found == set(files)
    assert len(published.files_of(output, "masks", partition)) > 1
    capsys.readouterr()
    _infer(plain_model, on_store, output)
    assert "nothing has changed" in capsys.readouterr().err
    _infer(plain_model, on_store, output, part_mib=1)
    assert "(40 of them before)" in capsys.readouterr().err
    assert _rows(output) == remote
    # The files of the first run are gone.
    assert len(bucket.files("predictions")) == len(TABLES)


def test_raw_pngs_and_workers_of_their_own(bucket, raw, plain_model, tmp_path, scenes) -> None:
    config = InferConfig(height=32, width=48, source_name="raw")
    outputs = [
        infer.run(
            str(plain_model), source, None, output, config, options=pipeline_options(TWO_WORKERS)
        )
        for source, output in ((raw, bucket.uri("raw-tables")), (str(scenes), str(tmp_path)))
    ]
    remote, reference = map(_rows, outputs)
    assert len(reference["masks"]) == 40
    assert remote == reference


def test_readers_see_one_run_whole(bucket, on_store: str, plain_model, monkeypatch) -> None:
    output = bucket.uri("order")
    _infer(plain_model, on_store, output)
    before = _rows(output)
    (partition,) = published.partitions(output)
    named = published.checksums(output, partition)
    storage_copy, targets = storage.copy, []

    def copy(source: str, target: str) -> None:
        targets.append(target)
        if target.endswith("/run.parquet"):
            raise Killed
        storage_copy(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "copy", copy)
        with pytest.raises(Killed):
            _infer(plain_model, on_store, output, part_mib=1)
    # The other files are beside the current ones, and none has replaced one of them.
    assert len(bucket.files("order")) > len(named) + 1
    assert not set(targets) & (
        named.keys() | {published.run_file(output, partition)} - {targets[-1]}
    )
    assert published.checksums(output, partition) == named
    assert _rows(output) == before
    _infer(plain_model, on_store, output, part_mib=1)
    assert _rows(output) == before
    assert not published.checksums(output, partition).keys() & named.keys()


def test_the_last_of_two_jobs_wins_whole(bucket, on_store: str, plain_model, monkeypatch) -> None:
    output = bucket.uri("two")
    _infer(plain_model, on_store, output)
    storage_copy, second = storage.copy, []

    def copy(source: str, target: str) -> None:
        if target.endswith("/run.parquet") and not second:
            second.append(target)
            # Another job publishes after this job's files but before its run.
            _infer(plain_model, on_store, output, part_mib=0.01)
        storage_copy(source, target)

    monkeypatch.setattr(storage, "copy", copy)
    _infer(plain_model, on_store, output, part_mib=1)
    assert second
    (partition,) = published.partitions(output)
    named = published.checksums(output, partition)
    assert all(storage.file_sha256(place) == digest for place, digest in named.items())
    assert len(published.files_of(output, "masks", partition)) == 1
    assert len(_rows(output)["masks"]) == 40


def test_a_job_that_beats_is_not_dead_however_long_it_takes(
    bucket: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = bucket.uri("beating")
    monkeypatch.setattr(staging, "_HEARTBEAT_S", 0.05)
    with staging.staging_folder(parent) as own:
        beat = storage.join(own, "heartbeat")
        first = storage.modified(beat)
        until(lambda: storage.modified(beat) > first, "a second beat")
        # Eight days later, as its name and the other job's clock say.
        now = time.time
        old = storage.join(parent, ".staging-20200101T000000-old")
        storage.write_bytes(storage.join(old, "heartbeat"), b"")
        storage.write_bytes(storage.join(old, "file"), b"")
        staging.remove_dead_staging(parent)
        assert storage.is_file(beat)
        assert storage.is_file(storage.join(old, "file"))
        with monkeypatch.context() as patch:
            patch.setattr(staging.time, "time", lambda: now() + 25 * 3600)
            staging.remove_dead_staging(parent)
        assert not storage.is_file(storage.join(old, "file"))
    assert bucket.files("beating") == {}


def test_what_a_dead_job_has_left_goes_after_a_week(bucket: Store) -> None:
    parent = bucket.uri("staged")
    names = [".staging-20200101T000000-dead", f".staging-{datetime.now(UTC):%Y%m%dT%H%M%S}-alive"]
    for name in names:
        storage.write_bytes(storage.join(parent, name, "file"), b"")
    with staging.staging_folder(parent) as own:
        assert own.startswith(f"{parent}/.staging-")
        storage.write_bytes(storage.join(own, "file"), b"")
        assert storage.is_file(storage.join(own, "file"))
    assert set(bucket.files("staged")) == {f"{names[1]}/file"}


@contextmanager
def _held_midway(
    bucket: Store, folder: Path, output: str, module: str, *arguments: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A job that was stopped, with its workers, after it had staged something.

    Its log and its temporary files are in ``folder``.
    """
    folder.mkdir()
    arguments = (f"--output={bucket.uri(output)}", *arguments, *TWO_WORKERS)
    process = started(folder / "log", module, *arguments, TMPDIR=str(folder))
    try:
        while not bucket.has_staged(output):
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGSTOP)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_job_that_is_killed_midway_publishes_nothing(
    bucket, raw: str, on_store: str, tmp_path: Path
) -> None:
    with _held_midway(
        bucket, tmp_path / "killed", "midway", "beam.ingest", f"--source={raw}", *SMALL_ARGUMENTS
    ):
        pass
    # What it has staged stays until it is a week old, and nobody sees it.
    staged = bucket.files("midway/small")
    assert staged
    assert all(name.startswith(".staging-") for name in staged)
    version = _ingest(raw, bucket.uri("midway"))
    name = on_store.rpartition("/")[2]
    assert version.endswith(f"/{name}")
    assert bucket.files("midway/small", name) == bucket.files("datasets/small", name)


# Slow: requests wait longer from try to try.
def test_a_store_that_is_away_for_a_while_costs_nothing(
    bucket, raw, on_store, plain_model, dataset, tmp_path
) -> None:
    undisturbed = _rows(_infer(plain_model, on_store, bucket.uri("undisturbed")))
    ingesting = ("beam.ingest", f"--source={raw}", *SMALL_ARGUMENTS)
    inferring = (
        *("beam.infer", f"--model={plain_model}", f"--dataset={on_store}"),
        *("--height=32", "--width=48", "--part_mib=0.02", "--source_name=small"),
    )

    def logs() -> list[str]:
        return [(tmp_path / name / "log").read_text() for name in ("ingest", "infer")]

    with (
        _held_midway(bucket, tmp_path / "ingest", "away-ingest", *ingesting) as ingest_job,
        _held_midway(bucket, tmp_path / "infer", "away-infer", *inferring) as infer_job,
    ):
        jobs = (ingest_job, infer_job)
        bucket.stop()
        try:
            for job in jobs:
                os.killpg(job.pid, signal.SIGCONT)
            note = "the store does not answer; trying again"
            until(lambda: all(note in log for log in logs()), "a note of both jobs")
            assert [job.poll() for job in jobs] == [None, None], logs()
        finally:
            bucket.start()
        assert [job.wait() for job in jobs] == [0, 0], logs()
    assert bucket.files("away-ingest/small", dataset.name) == bucket.files(
        "datasets/small", dataset.name
    )
    assert _rows(bucket.uri("away-infer")) == undisturbed
    assert not any("unreadable" in log for log in logs())
    # The workers' files on this machine are gone.
    assert list(tmp_path.glob("*/lyft-*")) == []


def test_mistakes_are_one_line_at_the_start(
    bucket, raw, on_store, plain_model, job: Job, monkeypatch
) -> None:
    good, output = f"--source={raw}", f"--output={bucket.uri('mistakes')}"
    predict = ("beam.infer", f"--model={plain_model}")
    away = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    cases = [
        ({}, ("beam.ingest", "--source=s3://none/raw", output), 2, "no bucket 'none'"),
        ({}, ("beam.ingest", f"{good}-none", output), 2, "there is no such folder"),
        ({}, ("beam.ingest", good, "--output=s3://none/x"), 2, "no bucket 'none'"),
        ({}, ("beam.ingest", good, "--output=ftp://none/x"), 2, "expected s3://"),
        ({}, ("beam.ingest", good, f"{output}//x"), 2, "expected one slash between names"),
        ({}, (*predict, f"--dataset={raw}", output), 2, "has no manifest.json"),
        ({}, (*predict, f"--dataset={on_store}", "--output=s3://none/x"), 2, "no bucket 'none'"),
        ({}, ("model.train", "--dataset=s3://none/x"), 2, "there is no such folder"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, ("beam.ingest", good, output), 2, "refuses access"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, (*predict, good, output), 2, "refuses access"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, ("beam.ingest", good, output), 2, "refuses access"),
        (away, ("beam.ingest", good, output), 75, "does not answer"),
    ]
    for variables, arguments, code, complaint in cases:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            done = job(*arguments)
        assert done.returncode == code, done.stderr
        assert done.stdout == ""
        assert complaint in done.stderr
        assert done.stderr.count("\n") == 1
    assert bucket.files("mistakes") == {}
