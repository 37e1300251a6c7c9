"""Hides a store's latency by reading several files at once, or the next files in advance."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import apache_beam as beam

from runtime.storage import REQUESTS, is_remote

Item = TypeVar("Item")
Result = TypeVar("Result")

_BATCH_SIZE = 32


@dataclass
class BatchReads(beam.PTransform):
    """Groups elements into lists: of several if their files are on a store, else of one.

    Attributes:
        source: where the files are.
    """

    source: str

    def expand(self, elements: beam.PCollection[Any]) -> beam.PCollection[list[Any]]:
        """The graph: one step."""
        if is_remote(self.source):
            return elements | "Several" >> beam.BatchElements(_BATCH_SIZE, _BATCH_SIZE)
        return elements | "Alone" >> beam.Map(lambda one: [one])


def prefetch(
    work: Callable[[Item], Result], items: Iterable[Item], place: str
) -> Iterator[tuple[Item, Callable[[], Result]]]:
    """Yields each item with a function that returns its result.

    On a store, work on the next items starts before their results are asked for.
    """
    if not is_remote(place):
        yield from ((item, partial(work, item)) for item in items)
        return
    with ThreadPoolExecutor(REQUESTS) as pool:
        begun: deque[tuple[Item, Callable[[], Result]]] = deque()
        for item in items:
            begun.append((item, pool.submit(work, item).result))
            if len(begun) > REQUESTS:
                yield begun.popleft()
        yield from begun
