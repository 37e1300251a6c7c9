"""ReadDataset and ReadPngs: transforms that read the images to predict, with truth if known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import apache_beam as beam

from beam.infer import runs
from beam.infer.incremental import PreviousResults, PreviousRun
from beam.infer.join_previous import JoinPrevious, JoinShards, Shard
from beam.infer.pictures import Picture, read_pair, read_shard
from beam.infer.plan import Job
from beam.infer.table_parts import ReusedRows
from beam.shared.crash_journal import CrashJournal, ReadSettings
from beam.shared.list_pairs import UNPAIRED, ListPairs
from beam.shared.pairing import Pair, Reject
from beam.shared.prefetch import BatchReads
from beam.shared.progress import CountingDoFn
from runtime.storage import map_concurrently
from schemas import software
from schemas.layout import SPLITS

PICTURES, KEPT, REJECTS, COUNT = "pictures", "kept", "rejects", "count"
"""Outputs of both transforms: images to predict, images whose rows are kept, rejected inputs, and
the number of images."""


@dataclass
class ReadDataset(beam.PTransform):
    """Reads the records of a dataset's shards, with their truth."""

    job: Job
    previous: PreviousRun | None
    progress: str

    def expand(self, root: beam.pvalue.PBegin) -> dict[str, beam.PCollection[Any]]:
        """The graph: list shards, spread them, join the published run, read their records."""
        job = self.job
        assert job.manifest is not None
        splits = SPLITS if job.config.split == "all" else (job.config.split,)
        shards = [(s.split, s.name) for s in job.manifest.shards if s.split in splits]
        read = (
            root
            | "Shards" >> beam.Create(shards, reshuffle=True)
            | "JoinShards" >> JoinShards(job.source, self.previous)
            | "ReadShard" >> beam.ParDo(_ReadShard(self)).with_outputs(KEPT, REJECTS, main=PICTURES)
        )
        count = root | "Records" >> beam.Create([(runs.IMAGES_READ, job.images)])
        return {name: read[name] for name in (PICTURES, KEPT, REJECTS)} | {COUNT: count}


@dataclass
class ReadPngs(beam.PTransform):
    """Reads the images below a folder, with the truth of those that have a mask.

    Attributes:
        crashed: paths on which a decoder crashes.
    """

    job: Job
    previous: PreviousRun | None
    progress: str
    crashed: frozenset[str] = frozenset()

    def expand(self, root: beam.pvalue.PBegin) -> dict[str, beam.PCollection[Any]]:
        """The graph: list, pair, join the published run, read."""
        job = self.job
        assert job.raw is not None
        listed = root | "ListPairs" >> ListPairs(
            job.raw, "infer", self.progress, need_mask=False, any_png=job.any_png
        )
        read = (
            listed["pairs"]
            | "JoinPrevious" >> JoinPrevious(self.previous)
            | "BatchReads" >> BatchReads(job.source)
            | "ReadPng" >> beam.ParDo(_ReadPng(self)).with_outputs(KEPT, REJECTS, main=PICTURES)
        )
        unpaired = listed[UNPAIRED] | "MasksApart" >> beam.Map(_with_truth_stage)
        rejects = (read[REJECTS], unpaired) | "ReadRejects" >> beam.Flatten()
        # Counted before anything is read, so that the results can be checked against it.
        lost = unpaired | "LostImages" >> beam.Filter(runs.is_lost_image)
        count = (
            (listed["pairs"], lost)
            | "Images" >> beam.Flatten()
            | "CountImage" >> beam.Map(lambda _: (runs.IMAGES_READ, 1))
        )
        return {PICTURES: read[PICTURES], KEPT: read[KEPT], REJECTS: rejects, COUNT: count}


def _with_truth_stage(reject: Reject) -> Reject:
    """Gives the reject of an unpaired mask the stage ``truth``: no image is lost."""
    return replace(reject, stage=runs.TRUTH_STAGE) if reject.is_mask else reject


class _Reader(CountingDoFn):
    """Base class of both readers; routes items to their outputs."""

    def __init__(self, transform: ReadDataset | ReadPngs) -> None:
        super().__init__("infer", transform.progress)
        self._job = transform.job

    def setup(self) -> None:
        """Called by Beam once for each worker, before its first bundle."""
        super().setup()
        software.check(self._job.made_with, software.of_rows(self._job.runtime.engine))

    def _route(
        self, items: Iterable[Picture | ReusedRows | Reject]
    ) -> Iterator[Picture | beam.pvalue.TaggedOutput]:
        for item in items:
            if isinstance(item, Picture):
                yield item
            elif isinstance(item, Reject):
                self.counters.add(f"rejected.{item.code}")
                yield beam.pvalue.TaggedOutput(REJECTS, item)
            else:
                self.counters.add("kept")
                yield beam.pvalue.TaggedOutput(KEPT, item)


class _ReadShard(_Reader):
    def process(
        self, element: tuple[Shard, Iterable[tuple[str, PreviousResults]]]
    ) -> Iterator[Picture | beam.pvalue.TaggedOutput]:
        """Reads the records of a shard."""
        job, (shard, previous) = self._job, element
        yield from self._route(read_shard(job.source, *shard, job.model, dict(previous)))


class _ReadPng(_Reader):
    def __init__(self, transform: ReadPngs) -> None:
        super().__init__(transform)
        self._journals = transform.progress
        self._crashed = transform.crashed

    def setup(self) -> None:
        super().setup()
        job = self._job
        self._journal = CrashJournal(
            self._journals, ReadSettings(job.source, job.config, job.model.mask_taxonomy)
        )

    def process(
        self, element: list[tuple[Pair, PreviousResults]]
    ) -> Iterator[Picture | beam.pvalue.TaggedOutput]:
        """Reads the images of pairs and, if they have any, their masks."""
        paths = [(pair.image.path, pair.mask.path if pair.mask else None) for pair, _ in element]
        with self._journal.recording(paths) as crashing:
            read = partial(self._read, crashed=self._crashed | crashing)
            items_of_pairs = map_concurrently(read, element)
        for items in items_of_pairs:
            yield from self._route(items)

    def _read(
        self, joined: tuple[Pair, PreviousResults], crashed: frozenset[str]
    ) -> list[Picture | ReusedRows | Reject]:
        job, (pair, previous) = self._job, joined
        return list(read_pair(pair, job.source, job.model, job.config, previous, crashed))
