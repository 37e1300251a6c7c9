"""WriteShards: groups records by shard and writes each shard as one TFRecord file.

Only references to records cross the shuffle. A worker copies the records of a shard one by one in
hash order. So memory holds one record at a time, and the few that are prefetched from a store, and
the bytes depend on nothing but the pairs and the recipe.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import apache_beam as beam
import pyarrow.parquet as pq

from beam.ingest import split_rules
from beam.ingest.incremental import PublishedShards
from beam.ingest.record_files import read_frames, unframe
from beam.ingest.records import ProcessedPair, Recipe, stats_of
from beam.shared.atomic_writes import atomic_copy, atomic_file
from beam.shared.prefetch import prefetch
from beam.shared.progress import CountingDoFn
from runtime.storage import file_sha256, join
from schemas.config import IngestConfig
from schemas.example import parse, write_record
from schemas.layout import SPLITS, shard_name
from schemas.manifest import ShardInfo
from schemas.sources import SourceRow, source_table
from schemas.stats import PixelStats

ShardKey = tuple[str, int]


@dataclass
class WriteShards(beam.PTransform):
    """Writes records as TFRecord files and returns one ShardInfo for each file.

    Attributes:
        recipe: what determines the records.
        folder: where the files are written.
        rows_folder: where the final rows of each shard are written, one Parquet file per shard.
        progress: folder of the counters.
        previous: a version whose shards may be reused.
    """

    recipe: Recipe
    folder: str
    rows_folder: str
    progress: str
    previous: PublishedShards | None = None

    def expand(self, records: beam.PCollection[ProcessedPair]) -> beam.PCollection[ShardInfo]:
        """The graph: count, key by shard, group, write."""
        config = self.recipe.config
        counts = (
            records
            | "SizeOfRecord"
            >> beam.Map(lambda pair: (pair.row.split, (1, record_bytes(pair.row, self.recipe))))
            | "SizeOfSplit" >> beam.CombinePerKey(beam.combiners.TupleCombineFn(sum, sum))
        )
        sizes = beam.pvalue.AsDict(counts)
        keyed = records | "KeyByShard" >> beam.Map(
            lambda pair, sizes: (shard_key(pair.row, sizes, self.recipe), pair), sizes
        )
        # An empty hash range gets a file, too: otherwise the numbers of the shards have gaps.
        all_keys = (
            records.pipeline
            | "Splits" >> beam.Create(SPLITS)
            | "EveryShard"
            >> beam.FlatMap(
                lambda split, sizes: [
                    ((split, index), None) for index in range(shards_of(split, sizes, config))
                ],
                sizes,
            )
        )
        return (
            (keyed, all_keys)
            | "AllKeys" >> beam.Flatten()
            | "GroupByShard" >> beam.GroupByKey()
            | "WriteShard" >> beam.ParDo(_WriteShard(self), sizes)
        )


def record_bytes(row: SourceRow, recipe: Recipe) -> int:
    """Estimates a record's bytes, from the target size or the sizes of the source files."""
    config = recipe.config
    if config.height:
        return 1024 + config.height * config.width * 8 // 5
    return 1024 + row.image_size + row.mask_size


def shards_of(split: str, sizes: dict[str, tuple[int, int]], config: IngestConfig) -> int:
    """Number of shards of a split; ``sizes`` has the records and bytes of each split with any."""
    records, size = sizes.get(split, (0, 0))
    return split_rules.shard_count(records, size, config)


def shard_key(row: SourceRow, sizes: dict[str, tuple[int, int]], recipe: Recipe) -> ShardKey:
    """Split and shard of a row; ``sizes`` as in ``shards_of``."""
    split = str(row.split)
    shards = shards_of(split, sizes, recipe.config)
    return split, split_rules.shard_of(split_rules.order_key(row.id, recipe.config), shards)


def shard_source_sha256(split: str, rows: Iterable[SourceRow], recipe: Recipe) -> str:
    """Hash of a shard's sources, in order, and of the recipe of their records."""
    digest = hashlib.sha256(f"{split} {recipe.sha256()}".encode())
    for row in rows:
        digest.update(f"\n{row.id}\0{row.image_sha256}\0{row.mask_sha256}".encode())
    return digest.hexdigest()


class _WriteShard(CountingDoFn):
    def __init__(self, transform: WriteShards) -> None:
        super().__init__("ingest", transform.progress)
        self._recipe = transform.recipe
        self._folder = transform.folder
        self._rows_folder = transform.rows_folder
        self._previous = transform.previous

    def process(
        self,
        element: tuple[ShardKey, Iterable[ProcessedPair | None]],
        sizes: dict[str, tuple[int, int]],
    ) -> Iterator[ShardInfo]:
        (split, index), grouped = element
        config = self._recipe.config
        records = sorted(
            (pair for pair in grouped if pair is not None),
            key=lambda pair: (split_rules.order_key(pair.row.id, config), pair.row.id),
        )
        shards = shards_of(split, sizes, config)
        name = shard_name(config.name, split, index, shards)
        source_sha256 = shard_source_sha256(split, (pair.row for pair in records), self._recipe)
        info, rows = self._reuse(name, source_sha256, records) or self._write(
            name, split, source_sha256, records
        )
        # The metadata step reads the rows from this file: they do not cross the shuffle.
        with atomic_file(join(self._rows_folder, f"{name}.parquet"), self._rows_folder) as path:
            pq.write_table(source_table(rows), path)
        yield info

    def _reuse(
        self, name: str, source_sha256: str, records: list[ProcessedPair]
    ) -> tuple[ShardInfo, list[SourceRow]] | None:
        """Links the previous version's shard of the same records, if all of them come from it."""
        old = self._previous and self._previous.shards.get(source_sha256)
        if not self._previous or not old or not records:
            return None
        shard = join(self._previous.folder, old.name)
        if any(pair.record is None or pair.record.file != shard for pair in records):
            return None
        atomic_copy(shard, join(self._folder, name), self._rows_folder)
        self.counters.add("written", old.records)
        return old.model_copy(update={"name": name}), [
            replace(pair.row, shard=name) for pair in records
        ]

    def _write(
        self, name: str, split: str, source_sha256: str, records: list[ProcessedPair]
    ) -> tuple[ShardInfo, list[SourceRow]]:
        classes = len(self._recipe.taxonomy)
        stats = PixelStats.zero(classes)
        rows = []
        size = 0
        # A retried bundle replaces the file of the first attempt by the same bytes.
        with atomic_file(join(self._folder, name), self._rows_folder) as path:
            with open(path, "wb") as file:
                for pair, read in prefetch(_read, records, self._folder):
                    record, record_stats = read()
                    stats += record_stats or stats_of(parse(record), classes)
                    length = write_record(file, record)
                    rows.append(replace(pair.row, shard=name, offset=size, length=length))
                    size += length
                    self.counters.add("written")
                    self.counters.add("bytes", length)
            digest = file_sha256(path)
        info = ShardInfo(
            name=name,
            split=split,
            records=len(rows),
            bytes=size,
            sha256=digest,
            source_sha256=source_sha256,
            stats=stats.to_json(),
        )
        return info, rows


def _read(pair: ProcessedPair) -> tuple[bytes, PixelStats | None]:
    if pair.record is None:
        raise ValueError(f"{pair.row.id}: a pair without a record has no shard")
    return unframe(pair.record, read_frames(pair.record))
