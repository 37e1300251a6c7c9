"""ReadDataset and ReadPngs: the images of a source, with their truth where it is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam

from beam import runs
from beam.listing import UNPAIRED, ListPairs
from beam.pairing import Pair, Reject
from beam.plan import Job
from beam.predict import Picture, read_picture, read_shard, read_truth
from beam.progress import CountingDoFn
from schemas.errors import RejectError
from schemas.layout import SPLITS

PICTURES, REJECTS, COUNT = "pictures", "rejects", "count"


@dataclass
class ReadDataset(beam.PTransform):
    """The records of a dataset's shards, with their truth.

    Returns a dict, as ``ReadPngs`` does: pictures; rejects; how many of both there are to be.
    """

    job: Job
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
            | "ReadShard"
            >> beam.ParDo(_ReadShard(job, self.progress)).with_outputs(REJECTS, main=PICTURES)
        )
        count = root | "Records" >> beam.Create([job.images])
        return {PICTURES: read[PICTURES], REJECTS: read[REJECTS], COUNT: count}


@dataclass
class ReadPngs(beam.PTransform):
    """The images below a folder, with the truth of those that have a mask beside them."""

    job: Job
    progress: str

    def expand(self, root: beam.pvalue.PBegin) -> dict[str, beam.PCollection[Any]]:
        """The graph: list, pair, read."""
        job = self.job
        listed = root | "ListPairs" >> ListPairs(
            job.source, "infer", self.progress, need_mask=False, loose=job.loose
        )
        read = listed["pairs"] | "ReadPng" >> beam.ParDo(_ReadPng(job, self.progress)).with_outputs(
            REJECTS, main=PICTURES
        )
        rejects = (read[REJECTS], listed[UNPAIRED]) | "ReadRejects" >> beam.Flatten()
        # Counted before anything is read, so that what comes out can be held against it.
        unpaired = listed[UNPAIRED] | "LostImages" >> beam.Filter(runs.is_lost_image)
        count = (
            (listed["pairs"], unpaired)
            | "Images" >> beam.Flatten()
            | "CountImages" >> beam.combiners.Count.Globally()
        )
        return {PICTURES: read[PICTURES], REJECTS: rejects, COUNT: count}


class _ReadShard(CountingDoFn):
    """Reads the records of a shard."""

    def __init__(self, job: Job, progress: str) -> None:
        super().__init__("infer", progress)
        self._job = job

    def process(self, element: tuple[str, str]) -> Iterator[Picture | beam.pvalue.TaggedOutput]:
        for one in read_shard(self._job.source, *element, self._job.model):
            if isinstance(one, Reject):
                self.counters.add(f"rejected.{one.code}")
                yield beam.pvalue.TaggedOutput(REJECTS, one)
            else:
                yield one


class _ReadPng(CountingDoFn):
    """Reads the image of a pair and, where there is one, its mask."""

    def __init__(self, job: Job, progress: str) -> None:
        super().__init__("infer", progress)
        self._job = job

    def process(self, element: tuple[str, Pair]) -> Iterator[Picture | beam.pvalue.TaggedOutput]:
        job, (_, pair) = self._job, element
        bound = job.config.max_pixels
        try:
            picture = read_picture(pair, job.source, job.model, bound)
        except RejectError as error:
            yield self._reject(pair.id, pair.image.path, "read", error)
            return
        truth = None
        try:
            truth = read_truth(pair, picture, job.source, job.model, bound)
        except RejectError as error:
            assert pair.mask is not None
            yield self._reject(pair.id, pair.mask.path, runs.TRUTH_STAGE, error)
        yield dataclasses.replace(picture, truth=truth)

    def _reject(
        self, image_id: str, path: str, stage: str, error: RejectError
    ) -> beam.pvalue.TaggedOutput:
        self.counters.add(f"rejected.{error.code}")
        reject = Reject(image_id, path, stage, error.code, error.message)
        return beam.pvalue.TaggedOutput(REJECTS, reject)
