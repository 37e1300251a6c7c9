"""The job on Spark, run for real inside its job server, and on Dataflow, as a dry run only."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import apache_beam as beam
import clusters
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from jobs import IN_MEMORY, ROOT, SMALL, SMALL_ARGUMENTS, started
from servers import until

from beam import tools
from beam.infer import pipeline as infer
from beam.infer.__main__ import main as infer_main
from beam.infer.engines.base import Runtime
from beam.infer.model_uri import ResolvedModel
from beam.infer.plan import Job
from beam.ingest import pipeline as ingest
from beam.ingest.incremental import PublishedShards
from beam.ingest.record_files import RecordRef
from beam.ingest.records import ProcessedPair, Recipe
from beam.ingest.tfrecords import WriteShards, _WriteShard
from beam.runners import boot
from beam.runners.run import pipeline_options, run_pipeline
from beam.shared.atomic_writes import atomic_file
from beam.shared.source import source_of
from flows.flink_demo import published_digests
from runtime.command_line import JobParser
from runtime.errors import UserError
from runtime.services import start_time
from schemas.classes import load_taxonomy
from schemas.config import InferConfig
from schemas.layout import SOURCES
from schemas.manifest import load_manifest
from schemas.software import of_records, of_rows
from schemas.sources import rows_of

DATAFLOW = [
    *("@beam/options/dataflow.args", "--project=lyft-unet", "--region=europe-west3"),
    *("--temp_location=gs://bucket/temp", "--sdk_container_image=registry.example/worker:1"),
]


def test_a_file_of_arguments(tmp_path: Path) -> None:
    parser = JobParser("job", "A job.")
    parser.add_argument("--source")
    (tmp_path / "options.args").write_text("# a remark\n\n--runner=X\n  --source=a b\n")
    args, rest = parser.parse_known_args([f"@{tmp_path}/options.args", "--source=c"])
    assert (args.source, rest) == ("c", ["--runner=X"])


def test_a_file_is_seen_whole_or_not_at_all(tmp_path: Path) -> None:
    path, aside = tmp_path / "file", tmp_path / "aside"
    aside.mkdir()
    with atomic_file(path, aside) as first, atomic_file(path, aside) as second:
        first.write_text("one")
        second.write_text("two")
        assert not path.exists()
    # The writer that finished last wins.
    assert path.read_text() == "one"
    with suppress(ValueError), atomic_file(path, aside) as part:
        part.write_text("half")
        raise ValueError
    assert path.read_text() == "one"


@pytest.mark.parametrize("again", [False, True])
def test_a_shard_that_is_tried_again_is_the_same(
    again: bool, dataset: Path, tmp_path: Path
) -> None:
    """Both attempts copy the records, or both link the shard of the previous version."""
    manifest = load_manifest(dataset)
    for name in ("shards", "rows", "progress"):
        (tmp_path / name).mkdir()
    recipe = Recipe(manifest.source, manifest.config, load_taxonomy("carla-0.8"), of_records())
    into = WriteShards(
        recipe,
        *(str(tmp_path / name) for name in ("shards", "rows", "progress")),
        PublishedShards.of(str(dataset), manifest) if again else None,
    )
    shard = manifest.shards[0]
    rows = [row for row in rows_of(pq.read_table(dataset / SOURCES)) if row.shard == shard.name]
    file = f"{dataset}/{shard.name}"
    records = [ProcessedPair(row, RecordRef(file, row.offset, row.length)) for row in rows]
    sizes = {shard.split: (shard.records, 1)}
    found = []
    for _ in range(2):
        step = _WriteShard(into)
        step.setup()
        found += step.process(((shard.split, 0), records), sizes)
        assert [path.name for path in (tmp_path / "shards").iterdir()] == [shard.name]
        assert (tmp_path / "shards" / shard.name).read_bytes() == (
            dataset / shard.name
        ).read_bytes()
    assert found == [shard, shard]
    assert step.counters._counts["written"] == shard.records


def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    """A runner that is killed cannot stop its workers."""
    script = (
        "import os, subprocess, sys, time\n"
        "from beam.runners.boot import _end_with_parent\n"
        "if len(sys.argv) > 1:\n"
        "    _end_with_parent()\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(3600)\n"
        "child = subprocess.Popen([sys.executable, __file__, 'child'])\n"
        "time.sleep(3600)\n"
    )
    (tmp_path / "parent.py").write_text(script)
    with subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
        until(lambda: start_time(child) is None, "the child's end")


def test_the_boot_program_can_be_started() -> None:
    command, variables = boot.process_environment()
    done = subprocess.run(
        [command], check=False, env={**os.environ, **variables}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "--provision_endpoint" in done.stderr


@pytest.mark.parametrize(
    ("message", "outcome"),
    [
        ("mvn: expected Maven, to fetch Beam's runners in Java; install maven", pytest.skip),
        ("jars of flink.xml: expected hash a, found b; not used", pytest.fail),
        ("pip … failed: ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE …", pytest.fail),
        ("mvn … failed: [ERROR] Checksum validation failed, expected 'a' but is 'b'", pytest.fail),
    ],
)
def test_a_package_with_another_hash_is_not_skipped(message: str, outcome: Any) -> None:
    def fetch() -> None:
        raise UserError(message)

    either = (pytest.skip.Exception, pytest.fail.Exception)
    with pytest.raises(either, match=re.escape(message)) as caught:
        clusters.need(fetch)
    assert caught.type is outcome.Exception


def test_what_the_page_replaces_for_a_spark_cluster_comes_last() -> None:
    """Of a JVM's properties with one name, the last one counts."""
    page = (ROOT / "docs/runners.md").read_text(encoding="utf-8")
    replaced = re.findall(r"--job_server_jvm_properties=\S+", page)
    file = f"@{ROOT}/beam/options/spark.args"
    _, arguments = JobParser("job", "A job.").parse_known_args([file, *replaced])
    given: list[str] = PipelineOptions(arguments).get_all_options()["job_server_jvm_properties"]
    found = dict(one.split("=") for one in given)
    assert len(found) == len(given) - len(replaced) == len(given) - 2
    assert found["-Dspark.driver.host"] == "THIS_HOST"
    assert found["-Dspark.driver.bindAddress"] == "0.0.0.0"


@pytest.mark.slow
def test_a_stopped_driver_takes_sparks_job_server_with_it(scenes: Path, tmp_path: Path) -> None:
    """Beam stops the server when Python exits, which SIGTERM by itself prevents."""
    java, log, pid = (tmp_path / name for name in ("java", "log", "pid"))
    java.write_text(f"#!/bin/sh\necho $$ > {pid}.part\nmv {pid}.part {pid}\nexec sleep 3600\n")
    java.chmod(0o755)
    (tmp_path / "server.jar").touch()
    process = started(
        log,
        *("beam.ingest", f"--source={scenes}", f"--output={tmp_path}/out"),
        *("@beam/options/spark.args", f"--spark_job_server_jar={tmp_path}/server.jar"),
        f"--job_server_java_launcher={java}",
    )
    until(lambda: pid.exists() or process.poll() is not None, "a job server")
    assert process.poll() is None, log.read_text()
    server = int(pid.read_text())
    try:
        process.terminate()
        assert process.wait() == 130, log.read_text()
        assert start_time(server) is None
    finally:
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)


# Slow: Spark's job server starts, and Python workers for each stage.
def test_spark_publishes_the_same_bytes(
    scenes: Path, dataset: Path, plain_model: Path, tmp_path: Path
) -> None:
    """Over 20 s: each of both jobs starts a JVM with Spark in it, and that its own workers."""
    clusters.need(tools.java, tools.spark_job_server)
    size, output, log = ("--height=32", "--width=48"), tmp_path / "out", tmp_path / "log"
    ingested = ("beam.ingest", *SMALL_ARGUMENTS, f"--output={output}")
    inferred = ("beam.infer", f"--model={plain_model}", f"--source={scenes}", "--part_mib=0.004")
    spark = ("@beam/options/spark.args", *size)
    for job in ((*ingested, f"--source={scenes}"), (*inferred, f"--output={output}/spark")):
        process = started(log, *job, *spark, TMPDIR=str(tmp_path), **clusters.HASTY)
        assert process.wait() == 0, log.read_text()
    (version,) = (output / "small").iterdir()
    assert published_digests(version) == published_digests(dataset)

    infer_main([*inferred[1:], f"--output={output}/local", *size, *IN_MEMORY])
    tables = published_digests(output / "spark")
    assert len(tables) > 8
    assert tables == published_digests(output / "local")


@pytest.mark.parametrize("local", [True, False])
def test_workers_elsewhere_find_the_model_in_the_staging_folder(
    local: bool,
    scenes: Path,
    plain_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They do not see a folder of the driver, such as the one that MLflow downloads to."""
    seen: list[bool] = []
    build = infer.build

    def note(root: beam.Pipeline, job: Job, staging: str, *rest: Any) -> None:
        files = [Path(str(file)) for file in (job.model.keras_file, job.model.graph)]
        assert all(file.is_file() for file in (*files, files[1].with_suffix(".bin")))
        seen.extend(file.is_relative_to(staging) for file in files)
        build(root, job, staging, *rest)

    monkeypatch.setattr(infer, "build", note)
    # By its full name, the local runner passes for another one.
    other = f"--runner={FnApiRunner.__module__}.FnApiRunner"
    options = pipeline_options([*IN_MEMORY, *([] if local else [other])])
    config = InferConfig(height=32, width=48)
    infer.run(str(plain_model), str(scenes), None, str(tmp_path), config, options=options)
    assert seen == [not local] * 2
    assert not list(tmp_path.glob("**/*.keras"))


def _dataflow(monkeypatch: pytest.MonkeyPatch, *more: str) -> PipelineOptions:
    pytest.importorskip("google.cloud.dataflow", reason="needs apache-beam[gcp]")
    monkeypatch.chdir(ROOT)
    _, arguments = JobParser("job", "A job.").parse_known_args([*DATAFLOW, "--dry_run=1", *more])
    return pipeline_options(arguments)


def _ingest(root: beam.Pipeline) -> None:
    recipe = Recipe("gs://bucket/raw", SMALL, load_taxonomy("carla-0.8"), of_records())
    staging = ingest.Staging(*(f"gs://bucket/{name}" for name in ("set", "rows", "counts")), "")
    ingest.build(root, recipe, staging)


def _infer(root: beam.Pipeline) -> None:
    uri, taxonomy = "gs://bucket/tables", load_taxonomy("carla-0.8")
    model = ResolvedModel("m", "m", "v1", f"{uri}/m.keras", "0", taxonomy, 96, 128, "nearest")
    config, runtime = InferConfig(), Runtime("openvino", "float32", 16)
    raw = source_of("gs://bucket/raw", config)
    made_with = of_rows("openvino")
    facts = (raw, False, 1, runtime, made_with, "0", "0")
    job = Job(model, config, raw.place, None, "raw", *facts)
    infer.build(root, job, f"{uri}/.staging", "counts", None)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (_ingest, {"ListPairs", "MakeRecords", "WriteShards/WriteShard", "WriteMetadata"}),
        (_infer, {"Read", "Predict", "Spool", "WriteImages", "SumMatrices", "WriteOthers"}),
    ],
)
def test_dataflow_builds_the_job(
    build: Callable[[beam.Pipeline], None], expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = _dataflow(monkeypatch)
    with beam.Pipeline(options=options) as root:
        build(root)
    job = root.result.job
    steps = {one.unique_name for one in job.proto_pipeline.components.transforms.values()}
    assert expected <= steps
    environments = job.proto_pipeline.components.environments.values()
    assert any(b"registry.example/worker:1" in one.payload for one in environments)
    assert not any(one.dependencies for one in environments)


def test_dataflow_refuses_options_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    options = _dataflow(monkeypatch, "--project=Not A Project")
    with pytest.raises(UserError, match="Invalid Project ID"):
        run_pipeline(_ingest, options)
