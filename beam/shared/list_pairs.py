"""ListPairs: lists a source's files, classifies them by path and pairs images with masks by id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import apache_beam as beam

from beam.shared import pairing
from beam.shared.pairing import Candidate, Pair, Reject, Skip
from beam.shared.progress import CountingDoFn
from beam.shared.source import RawSource

UNPAIRED, FILES = "unpaired", "files"


@dataclass
class ListPairs(beam.PTransform):
    """Lists the pairs of a source; opens no file.

    Attributes:
        job: namespace of the counters; progress: their folder.
        need_mask: whether an image without a mask is a reject.
        any_png: whether PNGs outside of the layout's folders are images too.

    Returns a dict:
        pairs: (id, Pair).
        unpaired: rejects of files that form no pair.
        files: (reason, number of files skipped for it); under "", the number of all files.
    """

    source: RawSource
    job: str
    progress: str
    need_mask: bool = True
    any_png: bool = False

    def expand(
        self, root: beam.pvalue.PBegin
    ) -> dict[str, beam.PCollection[tuple[str, Pair] | Reject | tuple[str, int]]]:
        """The graph: list, classify, group by id, pair."""
        files = (
            root
            | "Listings" >> beam.Create(self.source.parts(), reshuffle=True)
            | "ListFiles" >> beam.FlatMap(_entries, self.source, self.any_png)
            | "Route" >> beam.ParDo(_Route(self)).with_outputs(UNPAIRED, FILES, main="candidates")
        )
        paired = (
            files.candidates
            | "GroupById" >> beam.GroupByKey()
            | "Pair" >> beam.ParDo(_Pair(self)).with_outputs(UNPAIRED, main="pairs")
        )
        unpaired = (files[UNPAIRED], paired[UNPAIRED]) | "AllUnpaired" >> beam.Flatten()
        counts = files[FILES] | "CountFiles" >> beam.CombinePerKey(sum)
        return {"pairs": paired.pairs, UNPAIRED: unpaired, FILES: counts}


def _entries(part: str, source: RawSource, any_png: bool) -> Iterator[Candidate | Reject | Skip]:
    return (entry for _, entry in source.entries(part, any_png=any_png))


class _Route(CountingDoFn):
    """Counts each file and sends it to the output for its class."""

    def __init__(self, transform: ListPairs) -> None:
        super().__init__(transform.job, transform.progress)

    def process(
        self, element: Candidate | Reject | Skip
    ) -> Iterator[tuple[str, Candidate] | beam.pvalue.TaggedOutput]:
        yield beam.pvalue.TaggedOutput(FILES, ("", 1))
        if isinstance(element, Candidate):
            yield element.id, element
        elif isinstance(element, Skip):
            yield beam.pvalue.TaggedOutput(FILES, (element.reason, 1))
        else:
            self.counters.add(f"rejected.{element.code}")
            yield beam.pvalue.TaggedOutput(UNPAIRED, element)


class _Pair(CountingDoFn):
    def __init__(self, transform: ListPairs) -> None:
        super().__init__(transform.job, transform.progress)
        self._need_mask = transform.need_mask

    def process(
        self, element: tuple[str, Iterable[Candidate]]
    ) -> Iterator[tuple[str, Pair] | beam.pvalue.TaggedOutput]:
        for result in pairing.pair_candidates(element[1], need_mask=self._need_mask):
            if isinstance(result, Pair):
                self.counters.add("paired")
                yield result.id, result
            else:
                self.counters.add(f"rejected.{result.code}")
                yield beam.pvalue.TaggedOutput(UNPAIRED, result)
