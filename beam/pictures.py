"""ReadDataset and ReadPngs: the images of a source, with their truth where it is known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam

from beam import runs
from beam.listing import UNPAIRED, ListPairs
from beam.pairing import Pair, Reject
from beam.plan import Job
from beam.predict import Picture, read_pair, read_shard
from beam.previous import Previous
from beam.progress import CountingDoFn
from beam.spool import Ref
from schemas.layout import SPLITS

PICTURES, KEPT, REJECTS, COUNT = "pictures", "kept", "rejects", "count"
"""Images to predict; images whose rows are there; inputs left out; how many images there are."""


@dataclass
class ReadDataset(beam.PTransform):
    """The records of a dataset's shards, with their truth, as a dict of the four above."""

    job: Job
    previous: Previous
    progress: str

    def expand(self, root: beam.pvalue.PBegin) -> dict[str, beam.PCollection[Any]]:
        """The graph: list shards, spread them, read their records."""
        job = self.job
        assert job.manifest is not None
        splits = SPLITS if job.config.split == "all" else (job.config.split,)
        shards = [(s.split, s.name) for s in job.manifest.shards if s.split in splits]
        read = (
            root
            | "Shards" >> beam.Create(shards, reshuffle=True)
            | "ReadShard" >> beam.ParDo(_ReadShard(self)).with_outputs(KEPT, REJECTS, main=PICTURES)
        )
        count = root | "Records" >> beam.Create([(runs.IMAGES_READ, job.images)])
        return {name: read[name] for name in (PICTURES, KEPT, REJECTS)} | {COUNT: count}


@dataclass
class ReadPngs(beam.PTransform):
    """The images below a folder, with the truth of those that have a mask beside them."""

    job: Job
    previous: Previous
    progress: str

    def expand(self, root: beam.pvalue.PBegin) -> dict[str, beam.PCollection[Any]]:
        """The graph: list, pair, read."""
        job = self.job
        listed = root | "ListPairs" >> ListPairs(
            job.source, "infer", self.progress, need_mask=False, loose=job.loose
        )
        read = listed["pairs"] | "ReadPng" >> beam.ParDo(_ReadPng(self)).with_outputs(
            KEPT, REJECTS, main=PICTURES
        )
        rejects = (read[REJECTS], listed[UNPAIRED]) | "ReadRejects" >> beam.Flatten()
        # Counted before anything is read, so that what comes out can be held against it.
        unpaired = listed[UNPAIRED] | "LostImages" >> beam.Filter(runs.is_lost_image)
        count = (
            (listed["pairs"], unpaired)
            | "Images" >> beam.Flatten()
            | "CountImage" >> beam.Map(lambda _: (runs.IMAGES_READ, 1))
        )
        return {PICTURES: read[PICTURES], KEPT: read[KEPT], REJECTS: rejects, COUNT: count}


class _Reader(CountingDoFn):
    """Deals out what was read."""

    def __init__(self, into: ReadDataset | ReadPngs) -> None:
        super().__init__("infer", into.progress)
        self._job = into.job
        self._previous = into.previous

    def setup(self) -> None:
        """Beam's: once for each worker, before its first bundle."""
        super().setup()
        self._known = self._previous.open()

    def _deal(
        self, found: Iterable[Picture | Ref | Reject]
    ) -> Iterator[Picture | beam.pvalue.TaggedOutput]:
        for one in found:
            if isinstance(one, Picture):
                yield one
            elif isinstance(one, Ref):
                self.counters.add("kept")
                yield beam.pvalue.TaggedOutput(KEPT, one)
            else:
                self.counters.add(f"rejected.{one.code}")
                yield beam.pvalue.TaggedOutput(REJECTS, one)


class _ReadShard(_Reader):
    def process(self, element: tuple[str, str]) -> Iterator[Picture | beam.pvalue.TaggedOutput]:
        """Reads the records of a shard."""
        job = self._job
        yield from self._deal(read_shard(job.source, *element, job.model, self._known))


class _ReadPng(_Reader):
    def process(self, element: tuple[str, Pair]) -> Iterator[Picture | beam.pvalue.TaggedOutput]:
        """Reads the image of a pair and, where there is one, its mask."""
        job = self._job
        bound = job.config.max_pixels
        yield from self._deal(read_pair(element[1], job.source, job.model, bound, self._known))
