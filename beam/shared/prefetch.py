"""Prefetch: hides a store's latency by reading several files at once, or the next in advance."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import apache_beam as beam

from runtime.storage import CONCURRENT_REQUESTS, is_remote

Item = TypeVar("Item")
Result = TypeVar("Result")

_BATCH_SIZE = 32


@dataclass
class BatchReads(beam.PTransform):
    """Groups elements into lists that are read together: several on a store, one elsewhere.

    Attributes:
        source: path or URI of the files' root.
    """

    source: str

    def expand(self, elements: beam.PCollection[Any]) -> beam.PCollection[list[Any]]:
        """The graph: one step."""
        if is_remote(self.source):
            return elements | "Batch" >> beam.BatchElements(_BATCH_SIZE, _BATCH_SIZE)
        return elements | "Single" >> beam.Map(lambda element: [element])


def prefetch(
    work: Callable[[Item], Result], items: Iterable[Item], place: str
) -> Iterator[tuple[Item, Callable[[], Result]]]:
    """Yields each item with a function that returns the result of ``work``.

    On a store, threads work ahead on the next items.
    """
    if not is_remote(place):
        yield from ((item, partial(work, item)) for item in items)
        return
    with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
        pending: deque[tuple[Item, Callable[[], Result]]] = deque()
        for item in items:
            pending.append((item, pool.submit(work, item).result))
            if len(pending) > CONCURRENT_REQUESTS:
                yield pending.popleft()
        yield from pending
