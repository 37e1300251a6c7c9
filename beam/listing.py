"""ListPairs: classifies the files below a source and pairs them by id; it opens no file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import apache_beam as beam

from beam import pairing
from beam.pairing import Candidate, Pair, Reject, Skip
from beam.progress import CountingDoFn
from schemas import listing
from schemas.listing import SourceFile
from schemas.raw_layout import RawLayout

UNPAIRED, FILES = "unpaired", "files"


@dataclass
class ListPairs(beam.PTransform):
    """Lists the pairs below a source folder.

    Attributes:
        source: path or URI.
        layout: where images and masks lie.
        job: name of the counters; progress: their folder.
        need_mask: whether an image without a mask is a reject.
        loose: whether PNGs outside of the layout's places are images.

    Returns a dict: ``pairs``, as (id, Pair); ``unpaired``, rejects of files that form no pair;
    ``files``, the number of files that were listed, under "", and of those skipped, by reason.
    """

    source: str
    layout: RawLayout
    job: str
    progress: str
    need_mask: bool = True
    loose: bool = False

    def expand(
        self, root: beam.pvalue.PBegin
    ) -> dict[str, beam.PCollection[tuple[str, Pair] | Reject | tuple[str, int]]]:
        """The graph: list, classify, group by id, pair."""
        files = (
            root
            | "Source" >> beam.Create([self.source])
            | "ListFiles" >> beam.FlatMap(listing.walk_all)
            | "Classify"
            >> beam.ParDo(_Classify(self)).with_outputs(UNPAIRED, FILES, main="candidates")
        )
        paired = (
            files.candidates
            | "GroupById" >> beam.GroupByKey()
            | "Pair" >> beam.ParDo(_Pair(self)).with_outputs(UNPAIRED, main="pairs")
        )
        unpaired = (files[UNPAIRED], paired[UNPAIRED]) | "AllUnpaired" >> beam.Flatten()
        counts = files[FILES] | "CountFiles" >> beam.CombinePerKey(sum)
        return {"pairs": paired.pairs, UNPAIRED: unpaired, FILES: counts}


class _Classify(CountingDoFn):
    def __init__(self, into: ListPairs) -> None:
        super().__init__(into.job, into.progress)
        self._loose, self._layout = into.loose, into.layout

    def process(
        self, element: SourceFile
    ) -> Iterator[tuple[str, Candidate] | beam.pvalue.TaggedOutput]:
        yield beam.pvalue.TaggedOutput(FILES, ("", 1))
        found = pairing.candidate(element, self._layout, loose=self._loose)
        if isinstance(found, Candidate):
            yield found.id, found
        elif isinstance(found, Skip):
            yield beam.pvalue.TaggedOutput(FILES, (found.reason, 1))
        else:
            self.counters.add(f"rejected.{found.code}")
            yield beam.pvalue.TaggedOutput(UNPAIRED, found)


class _Pair(CountingDoFn):
    def __init__(self, into: ListPairs) -> None:
        super().__init__(into.job, into.progress)
        self._need_mask = into.need_mask

    def process(
        self, element: tuple[str, Iterable[Candidate]]
    ) -> Iterator[tuple[str, Pair] | beam.pvalue.TaggedOutput]:
        for one in pairing.pair(element[1], need_mask=self._need_mask):
            if isinstance(one, Pair):
                self.counters.add("paired")
                yield one.id, one
            else:
                self.counters.add(f"rejected.{one.code}")
                yield beam.pvalue.TaggedOutput(UNPAIRED, one)
