"""JoinPrevious and JoinShards: join what is read with the published run, so that no step holds it.

Each image meets what the published run has of its id by a join, and each shard of a dataset what it
has of the shard's ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam

from beam.infer.incremental import NO_RESULTS, PreviousResults, PreviousRun
from beam.infer.pictures import source_paths

Shard = tuple[str, str]
"""Split and name of a dataset's shard."""


@dataclass
class JoinPrevious(beam.PTransform):
    """Joins elements, keyed by image id, with the published run: (element, PreviousResults).

    Attributes:
        previous: the published run; if it is None, there is no shuffle.
    """

    previous: PreviousRun | None

    def expand(
        self, keyed: beam.PCollection[tuple[str, Any]]
    ) -> beam.PCollection[tuple[Any, PreviousResults]]:
        """The graph: read the published rows, group by id, match."""
        previous = self.previous
        if previous is None:
            return keyed | "NoPrevious" >> beam.MapTuple(lambda _, element: (element, NO_RESULTS))
        results = (
            keyed.pipeline
            | "PreviousFiles" >> beam.Create([*previous.masks, *previous.rejects], reshuffle=True)
            | "PreviousResults" >> beam.FlatMap(previous.results)
        )
        return (
            {"new": keyed, "previous": results}
            | "GroupById" >> beam.CoGroupByKey()
            | "Match" >> beam.FlatMapTuple(self._match)
        )

    def _match(
        self, _: str, group: dict[str, Iterable[Any]]
    ) -> Iterator[tuple[Any, PreviousResults]]:
        assert self.previous is not None
        results = self.previous.results_of_image(group["previous"])
        return ((element, results) for element in group["new"])


@dataclass
class JoinShards(beam.PTransform):
    """Joins shards with the published run: (shard, (id, PreviousResults) of its records).

    Attributes:
        dataset: folder of the shards.
        previous: the published run; if it is None, there is no shuffle.
    """

    dataset: str
    previous: PreviousRun | None

    def expand(
        self, shards: beam.PCollection[Shard]
    ) -> beam.PCollection[tuple[Shard, Iterable[tuple[str, PreviousResults]]]]:
        """The graph: read the shards' ids, join them, group by shard."""
        if self.previous is None:
            return shards | "NoPrevious" >> beam.Map(lambda shard: (shard, ()))
        known = (
            shards
            | "Ids" >> beam.FlatMap(_ids, self.dataset)
            | "JoinPrevious" >> JoinPrevious(self.previous)
            | "Known" >> beam.Filter(lambda joined: joined[1] != NO_RESULTS)
            | "KeyByShard" >> beam.MapTuple(lambda place, results: (place[0], (place[1], results)))
        )
        every = shards | "EveryShard" >> beam.Map(lambda shard: (shard, None))
        return (
            (known, every)
            | "AllShards" >> beam.Flatten()
            | "GroupByShard" >> beam.GroupByKey()
            | "OfShard" >> beam.MapTuple(lambda shard, joined: (shard, list(filter(None, joined))))
        )


def _ids(shard: Shard, dataset: str) -> Iterator[tuple[str, tuple[Shard, str]]]:
    return ((image_id, (shard, image_id)) for image_id in source_paths(dataset, shard[1]))
