"""ListPairs: the files below a source, classified and paired by id. Only paths are held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import apache_beam as beam

from beam import pairing, storage
from beam.pairing import Candidate, Pair, Reject
from beam.storage import SourceFile

UNPAIRED = "unpaired"


@dataclass
class ListPairs(beam.PTransform):
    """A source folder to its pairs.

    Attributes:
        source: path or URI.
        need_mask: whether an image without a mask is a reject.
        loose: whether PNGs outside of camera folders are images.

    Returns a dict: ``pairs``, (id, Pair); ``unpaired``, files that make no pair.
    """

    source: str
    need_mask: bool = True
    loose: bool = False

    def expand(
        self, root: beam.pvalue.PBegin
    ) -> dict[str, beam.PCollection[tuple[str, Pair] | Reject]]:
        """The graph: list, classify, group by id, pair."""
        files = (
            root
            | "Source" >> beam.Create([self.source])
            | "ListFiles" >> beam.FlatMap(storage.walk)
            | "Classify"
            >> beam.ParDo(_Classify(self.loose)).with_outputs(UNPAIRED, main="candidates")
        )
        paired = (
            files.candidates
            | "GroupById" >> beam.GroupByKey()
            | "Pair" >> beam.ParDo(_Pair(self.need_mask)).with_outputs(UNPAIRED, main="pairs")
        )
        unpaired = (files[UNPAIRED], paired[UNPAIRED]) | "AllUnpaired" >> beam.Flatten()
        return {"pairs": paired.pairs, UNPAIRED: unpaired}


class _Classify(beam.DoFn):
    def __init__(self, loose: bool) -> None:
        self._loose = loose

    def process(
        self, element: SourceFile
    ) -> Iterator[tuple[str, Candidate] | beam.pvalue.TaggedOutput]:
        found = pairing.candidate(element, loose=self._loose)
        if isinstance(found, Candidate):
            yield found.id, found
        elif found:
            yield beam.pvalue.TaggedOutput(UNPAIRED, found)


class _Pair(beam.DoFn):
    def __init__(self, need_mask: bool) -> None:
        self._need_mask = need_mask

    def process(
        self, element: tuple[str, Iterable[Candidate]]
    ) -> Iterator[tuple[str, Pair] | beam.pvalue.TaggedOutput]:
        for one in pairing.pair(element[1], need_mask=self._need_mask):
            if isinstance(one, Pair):
                yield one.id, one
            else:
                yield beam.pvalue.TaggedOutput(UNPAIRED, one)
