"""Jobs killed at random instants, many times: the long form of the tests of chosen points."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from inference import tables_of
from jobs import IN_MEMORY, SMALL, SMALL_ARGUMENTS, TWO_WORKERS, started
from kills import killed_at_random_instants
from store import Store

from beam.infer import pipeline as infer
from beam.infer.runs import TABLES
from beam.ingest import pipeline as ingest
from beam.runners.run import pipeline_options
from flows.flink_demo import published_digests
from runtime import storage
from schemas.config import InferConfig

pytestmark = pytest.mark.soak

INFER = ["--height=32", "--width=48", "--part_mib=0.004"]
CONFIG = InferConfig(height=32, width=48, part_mib=0.004)


def _report(job: str, options: list[str], published: list[bool]) -> None:
    print(f"{job} {options[0]}: {published.count(False)} kills, {published.count(True)} published")


@pytest.mark.parametrize(("kills", "options"), [(20, IN_MEMORY), (10, TWO_WORKERS)])
def test_ingest(scenes: Path, tmp_path: Path, kills: int, options: list[str]) -> None:
    def start(output: Path, options: list[str] = options) -> subprocess.Popen[bytes]:
        places = (f"--source={scenes}", f"--output={output}")
        return started(tmp_path / "log", "beam.ingest", *places, *SMALL_ARGUMENTS, *options)

    begun = time.monotonic()
    assert start(tmp_path / "undisturbed").wait() == 0
    duration = time.monotonic() - begun
    (undisturbed,) = (tmp_path / "undisturbed/small").iterdir()
    expected = published_digests(undisturbed)
    output = tmp_path / "out"

    def visible() -> list[Path]:
        return [path for path in output.glob("small/*") if not path.name.startswith(".")]

    seen = []
    for published in killed_at_random_instants(
        lambda: start(output), lambda: bool(visible()), kills, duration
    ):
        # Either nothing is visible, or all of it.
        assert [published_digests(path) for path in visible()] == [expected] * published
        assert start(output, IN_MEMORY).wait() == 0
        (recovered,) = (output / "small").iterdir()
        assert published_digests(recovered) == expected
        shutil.rmtree(recovered)
        seen.append(published)
    _report("ingest", options, seen)


@pytest.mark.parametrize(("kills", "options"), [(20, IN_MEMORY), (6, TWO_WORKERS)])
def test_infer(
    plain_model: Path, scenes: Path, tmp_path: Path, kills: int, options: list[str]
) -> None:
    def start(output: Path) -> subprocess.Popen[bytes]:
        places = (f"--model={plain_model}", f"--source={scenes}", f"--output={output}")
        return started(tmp_path / "log", "beam.infer", *places, *INFER, *options)

    begun = time.monotonic()
    assert start(tmp_path / "undisturbed").wait() == 0
    duration = time.monotonic() - begun
    expected = tables_of(tmp_path / "undisturbed")
    assert len(expected) > 10
    output = tmp_path / "out"
    seen = []
    for published in killed_at_random_instants(
        lambda: start(output), lambda: len(tables_of(output)) == len(expected), kills, duration
    ):
        found = tables_of(output)
        for table in TABLES:
            files = {name for name in expected if name.startswith(f"{table}/")}
            assert {name for name in found if name.startswith(f"{table}/")} in (set(), files)
        assert all(expected[name] == data for name, data in found.items())
        alone = pipeline_options(IN_MEMORY)
        infer.run(str(plain_model), str(scenes), None, str(output), CONFIG, options=alone)
        assert tables_of(output) == expected
        left = [path.name for path in output.iterdir() if path.name not in TABLES]
        assert left == []
        shutil.rmtree(output)
        seen.append(published)
    _report("infer", options, seen)


def test_ingest_on_a_store(bucket: Store, scenes: Path, dataset: Path, tmp_path: Path) -> None:
    raw, output = bucket.put(scenes, "raw"), bucket.uri("out")
    places = (f"--source={raw}", f"--output={output}")

    def start() -> subprocess.Popen[bytes]:
        command = ("beam.ingest", *places, *SMALL_ARGUMENTS, *TWO_WORKERS)
        return started(tmp_path / "log", *command, TMPDIR=str(tmp_path))

    begun = time.monotonic()
    assert start().wait() == 0
    duration = time.monotonic() - begun
    version = storage.join(output, "small", dataset.name)
    expected = bucket.files("out/small", dataset.name)
    manifest = storage.join(version, "manifest.json")
    storage.remove_tree(storage.join(output, "small"))
    seen = []
    for published in killed_at_random_instants(
        start, lambda: storage.is_file(manifest), 10, duration
    ):
        if published:
            assert bucket.files("out/small", dataset.name) == expected
        assert ingest.run(raw, output, SMALL, pipeline_options(IN_MEMORY)) == version
        assert bucket.files("out/small", dataset.name) == expected
        storage.remove_tree(storage.join(output, "small"))
        seen.append(published)
    _report("ingest on a store", TWO_WORKERS, seen)
