"""Runs the ingest job in the test's process, and reads its records."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from jobs import IN_MEMORY, SMALL

from beam.ingest import pipeline as ingest
from beam.ingest import split_rules
from beam.ingest.sequences import frame_of, step_of
from beam.runners.run import pipeline_options
from schemas.config import IngestConfig
from schemas.example import Example, parse, read_records
from schemas.manifest import load_manifest


def splits_of(classes: Mapping[str, Iterable[int]], config: IngestConfig) -> dict[str, str]:
    """The split of each id, found in plain Python: one sequence, split by block, nothing given.

    Args:
        classes: ids of the classes in the mask of each image.
    """
    frames = {name: frame_of(name) for name in classes}
    step = step_of((frame.camera, frame.instant) for frame in frames.values())
    groups = {
        name: split_rules.block(frame.sequence, frame.instant, step, config)
        for name, frame in frames.items()
    }
    found = split_rules.ClassBalance()
    for group in set(groups.values()):
        inside = [set(classes[name]) for name, of in groups.items() if of == group]
        found.add(split_rules.GroupContent(group, None, frozenset().union(*inside)), config)
    moved = split_rules.rebalance(found, config)
    return {
        name: moved.get(group.name) or split_rules.split_at(group.position, config)
        for name, group in groups.items()
    }


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
