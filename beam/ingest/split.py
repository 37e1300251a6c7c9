"""SplitWithoutLeaks: gives each record its split, and leaves out what would leak between splits.

1. Records that belong together form groups: blocks of a sequence, folders, or as the user says.
2. A group's place decides its split, unless a split would have no group or would lack a class.
3. A frame next to one of another split in its sequence is left out, and so is a near-duplicate.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
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
"""Frames at most as many usual steps apart are next to each other, and so are those between which
there is none."""


class Neighbour(NamedTuple):
    """A frame of another group that is next to a frame in its sequence."""

    id: str
    group: Group
    split: str | None


class GroupedRecord(NamedTuple):
    """A record with its group.

    Attributes:
        split: as given from outside; None if the group's place decides.
        neighbours: frames of other groups next to it.
    """

    pair: ProcessedPair
    group: Group
    split: str | None
    neighbours: tuple[Neighbour, ...] = ()


class SplitRecord(NamedTuple):
    """A record with its split.

    Attributes:
        given: whether it stays in its split, which was given from outside, or leaks are allowed.
        leak: the frame of another split next to it for which it is left out.
        beside_given: whether there is one beside which it stays.
    """

    pair: ProcessedPair
    given: bool
    leak: Leak | None
    beside_given: bool


@dataclass
class SplitWithoutLeaks(beam.PTransform):
    """Assigns splits to records.

    Returns a dict: ``records``, with their splits; ``left_out``, rows of the others; ``remaining``,
    parts of what leaks between splits that were given.

    Attributes:
        config: how to split; progress: folder of the running counters.
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
            | "KeyByHash" >> beam.Map(lambda one: (node_key(one), one))
        )
        leaks, pairs = (
            chosen
            | "Stay" >> beam.Filter(lambda one: one[1].leak is None)
            | "Ids" >> beam.MapTuple(lambda key, one: (key, (1, one.pair.row.id)))
            | "Nodes" >> beam.CombinePerKey(_count_and_first)
            | "AsNodes" >> beam.MapTuple(lambda key, of: Node(*key, *of))
            | "FindLeaks" >> FindLeaks()
        )
        ended = (
            {"chosen": chosen, "leaks": leaks}
            | "GroupByHash" >> beam.CoGroupByKey()
            | "LeaveOut"
            >> beam.ParDo(_LeaveOut(self.progress)).with_outputs(LEFT_OUT, REMAINING, main="kept")
        )
        return {
            "records": ended.kept,
            LEFT_OUT: ended[LEFT_OUT],
            REMAINING: (pairs, ended[REMAINING]) | "AllRemaining" >> beam.Flatten(),
        }


def sequence_of(pair: ProcessedPair, config: IngestConfig) -> str:
    """Key of the records that must be seen together to form groups: a sequence, or a group."""
    named = _named_group(pair, config)
    return f"group {named.name}" if named else f"sequence {frame_of(pair.row.id).sequence}"


class _Groups(beam.DoFn):
    """Yields the records of a sequence with their groups, and the content of each group."""

    def __init__(self, config: IngestConfig) -> None:
        self._config = config

    def process(
        self, element: tuple[str, Iterable[ProcessedPair]]
    ) -> Iterator[GroupedRecord | beam.pvalue.TaggedOutput]:
        contents: dict[tuple[Group, str | None], set[int]] = {}
        for one in group_sequence(element[1], self._config):
            contents.setdefault((one.group, one.split), set()).update(classes_in(one.pair))
            yield one
        for (group, split), classes in contents.items():
            content = GroupContent(group, split, frozenset(classes))
            yield beam.pvalue.TaggedOutput(_CONTENTS, content)


def group_sequence(
    records: Iterable[ProcessedPair], config: IngestConfig
) -> Iterator[GroupedRecord]:
    """The records of a sequence, each with its group and its neighbours in other groups."""
    ordered = []
    for pair in records:
        frame = frame_of(pair.row.id)
        named = _named_group(pair, config)
        if named or frame.instant is None:
            group = named or split_rules.named_group("image", pair.row.id, config)
            yield GroupedRecord(pair, group, pair.row.split)
        else:
            ordered.append((frame.instant, pair.row.id, frame, pair))
    if not ordered:
        return
    ordered.sort(key=lambda one: one[:2])
    step = step_of((frame.camera, instant) for instant, _, frame, _ in ordered)
    grouped = [
        GroupedRecord(
            pair, split_rules.block(frame.sequence, instant, step, config), pair.row.split
        )
        for instant, _, frame, pair in ordered
    ]
    instants = [instant for instant, *_ in ordered]
    for index, one in enumerate(grouped):
        beside = dict.fromkeys(
            Neighbour(grouped[other].pair.row.id, grouped[other].group, grouped[other].split)
            for other in _adjacent(index, instants, _ADJACENT_STEPS * step)
            if (grouped[other].group, grouped[other].split) != (one.group, one.split)
        )
        yield one._replace(neighbours=tuple(beside))


def _named_group(pair: ProcessedPair, config: IngestConfig) -> Group | None:
    """The group of a record; None if it is a block of its sequence."""
    sample_id = pair.row.id
    if pair.row.group:
        return split_rules.named_group("group", pair.row.group, config)
    if config.group:
        found = re.search(config.group, sample_id)
        if found:
            return split_rules.named_group("group", found[found.re.groups and 1], config)
        return split_rules.named_group("image", sample_id, config)
    if config.split_by == "folder":
        return split_rules.named_group("folder", folder_of(sample_id), config)
    if config.split_by == "image":
        return split_rules.named_group("image", sample_id, config)
    return None


def _adjacent(index: int, instants: list[int], most: float) -> Iterator[int]:
    """Indices of the frames next to one, in both directions: one of each instant after another."""
    for step in (-1, 1):
        other = index + step
        first = None
        while 0 <= other < len(instants):
            distance = abs(instants[other] - instants[index])
            if distance and first is None:
                first = instants[other]
            if distance > most and instants[other] != first:
                break
            yield other
            other += step


def classes_in(pair: ProcessedPair) -> list[int]:
    """Ids of the classes in a record's mask."""
    return [int(label) for label in str(pair.row.classes or "").split(",") if label]


class _BalanceFn(beam.CombineFn):
    """Adds up balances; the result is which groups move, and to which split."""

    def __init__(self, config: IngestConfig) -> None:
        self._config = config

    def create_accumulator(self) -> ClassBalance:
        return ClassBalance()

    def add_input(self, found: ClassBalance, content: GroupContent) -> ClassBalance:
        found.add(content, self._config)
        return found

    def merge_accumulators(self, parts: Iterable[ClassBalance]) -> ClassBalance:
        merged = ClassBalance()
        for part in parts:
            merged.merge(part)
        return merged

    def extract_output(self, found: ClassBalance) -> dict[str, str]:
        return split_rules.rebalance(found, self._config)


def assign_split(one: GroupedRecord, config: IngestConfig, moved: dict[str, str]) -> SplitRecord:
    """A record with its split, and the neighbour for which it is left out, if there is one.

    Of two frames next to each other, a given one stays, and else the one of train gives way to
    validation, and both to test.
    """

    def split_of(group: Group, split: str | None) -> str:
        return split or moved.get(group.name) or split_rules.split_at(group.position, config)

    split = split_of(one.group, one.split)
    row = replace(one.pair.row, split=split, group=one.group.name)
    others = [
        (near, split_of(near.group, near.split))
        for near in one.neighbours
        if split_of(near.group, near.split) != split
    ]
    given = one.split is not None or config.max_leak > 0
    leak = next(
        (
            Leak(near.id, other, 0)
            for near, other in others
            if not given and (near.split or split_rank(other) > split_rank(split))
        ),
        None,
    )
    beside_given = given and any(near.split or config.max_leak > 0 for near, _ in others)
    return SplitRecord(one.pair._replace(row=row), given, leak, beside_given)


def node_key(one: SplitRecord) -> NodeKey:
    """What the images of a node have in common: hash, split, and whether that was given."""
    return str(one.pair.row.dhash), str(one.pair.row.split), one.given


def _count_and_first(parts: Iterable[tuple[int, str]]) -> tuple[int, str]:
    counts, ids = zip(*parts, strict=True)
    return sum(counts), min(ids)


class _LeaveOut(CountingDoFn):
    """Passes records on, and those that leak as rejected rows to ``left_out``."""

    def __init__(self, progress: str) -> None:
        super().__init__("ingest", progress)

    def process(
        self, element: tuple[NodeKey, dict[str, Iterable[Any]]]
    ) -> Iterator[ProcessedPair | beam.pvalue.TaggedOutput]:
        leaks = sorted(element[1]["leaks"])
        near = next((leak for leak in leaks if leak.left_out), None)
        for one in element[1]["chosen"]:
            leak = one.leak or near
            if leak is None:
                yield one.pair
                evaluation = one.pair.row.split != "train"
                if leaks or one.beside_given:
                    in_pair = int(bool(leaks))
                    yield beam.pvalue.TaggedOutput(
                        REMAINING,
                        RemainingLeaks(
                            images=in_pair,
                            evaluation=in_pair * evaluation,
                            beside=int(one.beside_given),
                        ),
                    )
                continue
            self.counters.add("left out")
            how = "next to" if one.leak else f"near-duplicate ({leak.bits} of 64 bits differ) of"
            reason = f"{how} {leak.id}, which is in {leak.split}"
            yield beam.pvalue.TaggedOutput(
                LEFT_OUT, reject_row(one.pair.row, RejectError(LEAK, reason))
            )
