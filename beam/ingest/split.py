"""SplitWithoutLeaks: assigns records to splits by group, and leaves out what would leak.

1. Records that belong together form groups: blocks of a sequence, folders, or as the user says.
2. A group's position decides its split, unless a split would have no group or would lack a class.
3. Frames next to one of another split in their sequence (an embargo) are left out, and so are
   near-duplicates of images in another split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, NamedTuple

import apache_beam as beam

from beam.ingest import split_rules
from beam.ingest.near_duplicates import FindLeaks, Leak, Node, NodeKey, RemainingLeaks, split_rank
from beam.ingest.records import LEAK, ProcessedPair, reject_row
from beam.ingest.sequences import folder_of, frame_of, step_of
from beam.ingest.split_rules import ClassBalance, Group, GroupContent
from beam.shared.progress import CountingDoFn
from runtime.errors import RejectError
from schemas.config import IngestConfig

LEFT_OUT, REMAINING, _CONTENTS = "left_out", "remaining", "contents"

_ADJACENT_STEPS = 1.5
"""Frames at most this many usual steps apart are adjacent; so are frames without one in between."""


class Neighbour(NamedTuple):
    """A frame of another group that is adjacent in the sequence."""

    id: str
    group: Group
    split: str | None


class GroupedRecord(NamedTuple):
    """A record with its group.

    Attributes:
        split: as given by a list or folder; None if the group's position decides.
        neighbours: adjacent frames of other groups.
    """

    pair: ProcessedPair
    group: Group
    split: str | None
    neighbours: tuple[Neighbour, ...] = ()


class SplitRecord(NamedTuple):
    """A record with its split.

    Attributes:
        given: whether it stays despite leaks: its split was given, or leaks are allowed.
        leak: the adjacent frame of another split for which it is left out, if there is one.
        beside_given: whether it stays despite an adjacent frame of another split.
    """

    pair: ProcessedPair
    given: bool
    leak: Leak | None
    beside_given: bool


@dataclass
class SplitWithoutLeaks(beam.PTransform):
    """Assigns splits to records.

    Attributes:
        config: how to split; progress: folder of the counters.

    Returns a dict:
        records: those that stay, with their splits.
        left_out: rows of the others.
        remaining: partial sums of the leaks that stay.
    """

    config: IngestConfig
    progress: str

    def expand(self, records: beam.PCollection[ProcessedPair]) -> dict[str, beam.PCollection[Any]]:
        """The graph: group, balance, drop neighbours, drop near-duplicates."""
        groups = (
            records
            | "BySequence" >> beam.Map(lambda pair: (sequence_of(pair, self.config), pair))
            | "GroupBySequence" >> beam.GroupByKey()
            | "Groups" >> beam.ParDo(_Groups(self.config)).with_outputs(_CONTENTS, main="grouped")
        )
        moved = groups[_CONTENTS] | "Balance" >> beam.CombineGlobally(_BalanceFn(self.config))
        chosen = (
            groups.grouped
            | "AssignSplit" >> beam.Map(assign_split, self.config, beam.pvalue.AsSingleton(moved))
            | "KeyByHash" >> beam.Map(lambda record: (node_key(record), record))
        )
        leaks, pairs = (
            chosen
            | "Stay" >> beam.Filter(lambda keyed: keyed[1].leak is None)
            | "Ids" >> beam.MapTuple(lambda key, record: (key, (1, record.pair.row.id)))
            | "Nodes" >> beam.CombinePerKey(_count_and_first)
            | "AsNodes" >> beam.MapTuple(lambda key, count_and_first: Node(*key, *count_and_first))
            | "FindLeaks" >> FindLeaks()
        )
        outputs = (
            {"chosen": chosen, "leaks": leaks}
            | "GroupByHash" >> beam.CoGroupByKey()
            | "LeaveOut"
            >> beam.ParDo(_LeaveOut(self.progress)).with_outputs(LEFT_OUT, REMAINING, main="kept")
        )
        return {
            "records": outputs.kept,
            LEFT_OUT: outputs[LEFT_OUT],
            REMAINING: (pairs, outputs[REMAINING]) | "AllRemaining" >> beam.Flatten(),
        }


def sequence_of(pair: ProcessedPair, config: IngestConfig) -> str:
    """Key of the records that are grouped together: those of a sequence, or of a named group."""
    group = _named_group(pair, config)
    return f"group {group.name}" if group else f"sequence {frame_of(pair.row.id).sequence}"


class _Groups(beam.DoFn):
    """Yields the records of a sequence with their groups, and the content of each group."""

    def __init__(self, config: IngestConfig) -> None:
        self._config = config

    def process(
        self, element: tuple[str, Iterable[ProcessedPair]]
    ) -> Iterator[GroupedRecord | beam.pvalue.TaggedOutput]:
        contents: dict[tuple[Group, str | None], set[int]] = {}
        for record in group_sequence(element[1], self._config):
            classes = contents.setdefault((record.group, record.split), set())
            classes.update(classes_in(record.pair))
            yield record
        for key, classes in contents.items():
            content = GroupContent(*key, frozenset(classes))
            yield beam.pvalue.TaggedOutput(_CONTENTS, content)


def group_sequence(
    records: Iterable[ProcessedPair], config: IngestConfig
) -> Iterator[GroupedRecord]:
    """The records of a sequence, each with its group and its neighbours in other groups.

    If the records are a named group, those without a given split get that of the others.
    """
    records = list(records)
    given = {pair.row.split for pair in records if pair.row.split}
    frames = []
    for pair in records:
        frame = frame_of(pair.row.id)
        group = _named_group(pair, config)
        if group:
            split = pair.row.split or (min(given) if len(given) == 1 else None)
            yield GroupedRecord(pair, group, split)
        elif frame.instant is None:
            group = split_rules.named_group("image", pair.row.id, config)
            yield GroupedRecord(pair, group, pair.row.split)
        else:
            frames.append((frame.instant, pair.row.id, frame, pair))
    if not frames:
        return
    frames.sort(key=itemgetter(0, 1))
    step = step_of((frame.camera, instant) for instant, _, frame, _ in frames)
    grouped = [
        GroupedRecord(
            pair, split_rules.block(frame.sequence, instant, step, config), pair.row.split
        )
        for instant, _, frame, pair in frames
    ]
    instants = [instant for instant, *_ in frames]
    for index, record in enumerate(grouped):
        adjacent = [grouped[at] for at in _adjacent(index, instants, _ADJACENT_STEPS * step)]
        neighbours = dict.fromkeys(
            Neighbour(other.pair.row.id, other.group, other.split)
            for other in adjacent
            if (other.group, other.split) != (record.group, record.split)
        )
        yield record._replace(neighbours=tuple(neighbours))


def _named_group(pair: ProcessedPair, config: IngestConfig) -> Group | None:
    """The group that a list, the config or a folder names; None for a block of a sequence."""
    sample_id = pair.row.id
    if pair.row.group:
        return split_rules.named_group("group", pair.row.group, config)
    if config.group:
        if match := re.search(config.group, sample_id):
            # Of alternatives in parentheses, the others are None.
            parts = match.groups() or (match[0],)
            if (name := next((one for one in parts if one is not None), None)) is not None:
                return split_rules.named_group("group", name, config)
        return split_rules.named_group("image", sample_id, config)
    if config.split_by == "folder":
        return split_rules.named_group("folder", folder_of(sample_id), config)
    if config.split_by == "image":
        return split_rules.named_group("image", sample_id, config)
    return None


def _adjacent(index: int, instants: list[int], most: float) -> Iterator[int]:
    """Indices of the frames at most ``most`` away from one, and of the nearest on each side."""
    for step in (-1, 1):
        other = index + step
        nearest = None
        while 0 <= other < len(instants):
            distance = abs(instants[other] - instants[index])
            if distance and nearest is None:
                nearest = instants[other]
            if distance > most and instants[other] != nearest:
                break
            yield other
            other += step


def classes_in(pair: ProcessedPair) -> list[int]:
    """Ids of the classes in a record's mask."""
    return [int(label) for label in str(pair.row.classes or "").split(",") if label]


class _BalanceFn(beam.CombineFn):
    """Merges the class balances of groups; the result is the split of each group that moves."""

    def __init__(self, config: IngestConfig) -> None:
        self._config = config

    def create_accumulator(self) -> ClassBalance:
        return ClassBalance()

    def add_input(self, balance: ClassBalance, content: GroupContent) -> ClassBalance:
        balance.add(content, self._config)
        return balance

    def merge_accumulators(self, parts: Iterable[ClassBalance]) -> ClassBalance:
        merged = ClassBalance()
        for part in parts:
            merged.merge(part)
        return merged

    def extract_output(self, balance: ClassBalance) -> dict[str, str]:
        return split_rules.rebalance(balance, self._config)


def assign_split(record: GroupedRecord, config: IngestConfig, moved: dict[str, str]) -> SplitRecord:
    """A record with its split, and the neighbour for which it is left out, if there is one.

    Of two adjacent frames, one with a given split stays. Otherwise train is left out before
    validation, and validation before test.
    """

    def split_of(group: Group, split: str | None) -> str:
        return split or moved.get(group.name) or split_rules.split_at(group.position, config)

    split = split_of(record.group, record.split)
    row = replace(record.pair.row, split=split, group=record.group.name)
    others = [(near, split_of(near.group, near.split)) for near in record.neighbours]
    others = [(near, other) for near, other in others if other != split]
    given = record.split is not None or config.max_leak > 0
    leaks = (
        Leak(near.id, other, 0)
        for near, other in others
        if not given and (near.split or split_rank(other) > split_rank(split))
    )
    beside_given = given and any(near.split or config.max_leak > 0 for near, _ in others)
    return SplitRecord(record.pair._replace(row=row), given, next(leaks, None), beside_given)


def node_key(record: SplitRecord) -> NodeKey:
    """Key of the node to which a record belongs."""
    return str(record.pair.row.dhash), str(record.pair.row.split), record.given


def _count_and_first(parts: Iterable[tuple[int, str]]) -> tuple[int, str]:
    counts, ids = zip(*parts, strict=True)
    return sum(counts), min(ids)


class _LeaveOut(CountingDoFn):
    """Passes records on; sends those that leak to ``left_out``, as rows of rejects."""

    def __init__(self, progress: str) -> None:
        super().__init__("ingest", progress)

    def process(
        self, element: tuple[NodeKey, dict[str, Iterable[Any]]]
    ) -> Iterator[ProcessedPair | beam.pvalue.TaggedOutput]:
        leaks = sorted(element[1]["leaks"])
        near_duplicate = next((leak for leak in leaks if leak.left_out), None)
        for record in element[1]["chosen"]:
            row = record.pair.row
            if leak := record.leak or near_duplicate:
                self.counters.add("left out")
                relation = f"near-duplicate ({leak.bits} of 64 bits differ) of"
                if record.leak:
                    relation = "next to"
                error = RejectError(LEAK, f"{relation} {leak.id}, which is in {leak.split}")
                yield beam.pvalue.TaggedOutput(LEFT_OUT, reject_row(row, error))
                continue
            yield record.pair
            if leaks or record.beside_given:
                images = int(bool(leaks))
                evaluation = images * (row.split != "train")
                beside = int(record.beside_given)
                remaining = RemainingLeaks(0, images, evaluation, beside)
                yield beam.pvalue.TaggedOutput(REMAINING, remaining)
