"""Runs the ingest job in the test's process, and reads its records."""

from pathlib import Path

from jobs import IN_MEMORY, SMALL

from beam import ingest
from beam.pipeline import pipeline_options
from schemas.config import IngestConfig
from schemas.example import Example, parse, read_records
from schemas.manifest import load_manifest


def run_ingest(
    source: Path | str, output: Path, config: IngestConfig = SMALL, *options: str
) -> Path:
    arguments = [*IN_MEMORY, *options]
    return Path(ingest.run(str(source), str(output), config, pipeline_options(arguments)))


def records_of(folder: Path, split: str) -> list[Example]:
    found = []
    for name in load_manifest(folder).shard_names(split):
        with (folder / name).open("rb") as file:
            found += [parse(record) for record in read_records(file, name)]
    return found
