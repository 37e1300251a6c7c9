"""JoinPrevious: joins pairs with those of an earlier version, so that no step holds them all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam

from beam.ingest.incremental import PublishedShards, previous_pairs
from beam.ingest.records import ProcessedPair
from beam.shared.pairing import Pair


@dataclass
class JoinPrevious(beam.PTransform):
    """Joins pairs, keyed by id, with those of an earlier version: (Pair, ProcessedPair or None).

    Attributes:
        previous: the earlier version; if it is None, there is no shuffle.
    """

    previous: PublishedShards | None

    def expand(
        self, pairs: beam.PCollection[tuple[str, Pair]]
    ) -> beam.PCollection[tuple[Pair, ProcessedPair | None]]:
        """The graph: read the earlier pairs, group by id, match."""
        if self.previous is None:
            return pairs | "NoPrevious" >> beam.MapTuple(lambda _, pair: (pair, None))
        shards = [shard.name for shard in self.previous.shards.values()]
        previous = (
            pairs.pipeline
            | "Previous" >> beam.Create([*shards, None], reshuffle=True)
            | "PreviousPairs" >> beam.FlatMap(previous_pairs, self.previous)
        )
        return (
            {"pairs": pairs, "previous": previous}
            | "GroupById" >> beam.CoGroupByKey()
            | "Match" >> beam.FlatMapTuple(_match)
        )


def _match(_: str, group: dict[str, Iterable[Any]]) -> Iterator[tuple[Pair, ProcessedPair | None]]:
    previous = next(iter(group["previous"]), None)
    return ((pair, previous) for pair in group["pairs"])
