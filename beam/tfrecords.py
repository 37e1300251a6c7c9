"""WriteShards: groups pairs by shard and writes each shard as one TFRecord file.

Only paths cross the shuffle. The worker of a shard reads, checks, resizes, encodes and writes its
pairs one after the other in hash order. So memory holds one pair at a time (and the few that are
read ahead from a store), and the bytes depend on nothing but the pairs and the recipe.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import apache_beam as beam
import pyarrow.parquet as pq

from beam import splitting
from beam.ahead import ahead
from beam.attempts import take_whole, whole_file
from beam.progress import CountingDoFn
from beam.records import TRANSIENT, Recipe, make_record, read_pair, reject_row
from schemas.config import IngestConfig
from schemas.errors import RejectError
from schemas.example import encode, write_record
from schemas.layout import SPLITS, shard_name
from schemas.manifest import Manifest, ShardInfo
from schemas.sources import SourceRow, source_table
from schemas.stats import PixelStats
from schemas.storage import file_sha256, is_file, join

ShardKey = tuple[str, int]


@dataclass(frozen=True)
class PublishedShards:
    """A published version whose shards may be reused if their sources are the same."""

    folder: str
    shards: dict[str, ShardInfo]
    """The shards by the hash of their sources."""

    @classmethod
    def of(cls, folder: str, manifest: Manifest) -> PublishedShards:
        """The shards of the dataset version in ``folder``."""
        return cls(folder, {shard.source_sha256: shard for shard in manifest.shards})


@dataclass
class WriteShards(beam.PTransform):
    """Writes rows as TFRecord files and returns one ShardInfo for each file.

    Attributes:
        recipe: what determines the records.
        folder: where the files are written.
        rows_folder: where the final rows of each shard are written, one Parquet file per shard.
        progress: folder of the running counters.
        previous: a version whose shards may be reused.
    """

    recipe: Recipe
    folder: str
    rows_folder: str
    progress: str
    previous: PublishedShards | None = None

    def expand(self, rows: beam.PCollection[SourceRow]) -> beam.PCollection[ShardInfo]:
        """The graph: count, key by shard, group, write."""
        config = self.recipe.config
        counts = (
            rows
            | "SizeOfRow" >> beam.Map(lambda row: (row.split, (1, record_bytes(row, self.recipe))))
            | "SizeOfSplit" >> beam.CombinePerKey(beam.combiners.TupleCombineFn(sum, sum))
        )
        sizes = beam.pvalue.AsDict(counts)
        keyed = rows | "KeyByShard" >> beam.Map(
            lambda row, sizes: (shard_key(row, sizes, self.recipe), row), sizes
        )
        # A hash range without rows still gets a file, or the set of shards would have gaps.
        every = (
            rows.pipeline
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
            (keyed, every)
            | "AllKeys" >> beam.Flatten()
            | "GroupByShard" >> beam.GroupByKey()
            | "WriteShard" >> beam.ParDo(_WriteShard(self), sizes)
        )


def record_bytes(row: SourceRow, recipe: Recipe) -> int:
    """Estimates a record's size before it is made, from the target size or the source files."""
    config = recipe.config
    if config.height:
        return 1024 + config.height * config.width * 8 // 5
    return 1024 + row.image_size + row.mask_size


def shards_of(split: str, sizes: dict[str, tuple[int, int]], config: IngestConfig) -> int:
    """Shards of a split, given the records and bytes of each split that has any."""
    records, size = sizes.get(split, (0, 0))
    return splitting.shard_count(records, size, config)


def shard_key(row: SourceRow, sizes: dict[str, tuple[int, int]], recipe: Recipe) -> ShardKey:
    """Split and shard of a row, given the records and bytes of each split."""
    split = str(row.split)
    shards = shards_of(split, sizes, recipe.config)
    return split, splitting.shard_of(splitting.order_key(row.id, recipe.config), shards)


def shard_source_sha256(split: str, rows: Iterable[SourceRow], recipe: Recipe) -> str:
    """Hash of a shard's sources, in order, and of everything that determines their records."""
    made_by = f"{split} {recipe.config.sha256()} {recipe.taxonomy.sha256}"
    digest = hashlib.sha256(made_by.encode())
    for row in rows:
        digest.update(f"\n{row.id}\0{row.image_sha256}\0{row.mask_sha256}".encode())
    return digest.hexdigest()


class _WriteShard(CountingDoFn):
    def __init__(self, into: WriteShards) -> None:
        super().__init__("ingest", into.progress)
        self._recipe = into.recipe
        self._folder = into.folder
        self._rows_folder = into.rows_folder
        self._previous = into.previous

    def process(
        self,
        element: tuple[ShardKey, Iterable[SourceRow | None]],
        sizes: dict[str, tuple[int, int]],
    ) -> Iterator[ShardInfo]:
        (split, index), grouped = element
        config = self._recipe.config
        rows = sorted(
            (row for row in grouped if row is not None),
            key=lambda row: (splitting.order_key(row.id, config), row.id),
        )
        shards = shards_of(split, sizes, config)
        name = shard_name(config.name, split, index, shards)
        source_sha256 = shard_source_sha256(split, rows, self._recipe)
        info, done = self._take_over(name, source_sha256, rows) or self._write(
            name, split, source_sha256, rows
        )
        # Rows stay out of the shuffle: the metadata step reads them from these files.
        with whole_file(join(self._rows_folder, f"{name}.parquet"), self._rows_folder) as path:
            pq.write_table(source_table(done), path)
        yield info

    def _take_over(
        self, name: str, source_sha256: str, rows: list[SourceRow]
    ) -> tuple[ShardInfo, list[SourceRow]] | None:
        """Reuses the shard of the previous version, if it is intact and its rows are known."""
        old = self._previous and self._previous.shards.get(source_sha256)
        if not self._previous or not old or not all(_is_settled(row) for row in rows):
            return None
        shard = join(self._previous.folder, old.name)
        if not is_file(shard) or file_sha256(shard) != old.sha256:
            return None
        take_whole(shard, join(self._folder, name), self._rows_folder)
        self.counters.add("kept", old.records)
        for row in rows:
            if row.reject_code:
                self.counters.add(f"rejected.{row.reject_code}")
        done = [replace(row, shard=None if row.reject_code else name) for row in rows]
        return old.model_copy(update={"name": name}), done

    def _write(
        self, name: str, split: str, source_sha256: str, rows: list[SourceRow]
    ) -> tuple[ShardInfo, list[SourceRow]]:
        recipe = self._recipe
        stats = PixelStats.zero(len(recipe.taxonomy))
        done = []
        size = 0
        # A retried bundle replaces what the first attempt left with the same bytes.
        with whole_file(join(self._folder, name), self._rows_folder) as path:
            with open(path, "wb") as file:
                for row, read in ahead(self._read, rows, recipe.source):
                    try:
                        made, sample, example = make_record(row, recipe, read)
                    except RejectError as error:
                        self.counters.add(f"rejected.{error.code}")
                        done.append(reject_row(row, error))
                        continue
                    written = write_record(file, encode(example))
                    stats += PixelStats.of(sample.image, sample.mask, len(recipe.taxonomy))
                    size += written
                    done.append(
                        replace(
                            made,
                            shard=name,
                            reject_path=None,
                            reject_code=None,
                            reject_message=None,
                        )
                    )
                    self.counters.add("written")
                    self.counters.add("bytes", written)
            digest = file_sha256(path)
        info = ShardInfo(
            name=name,
            split=split,
            records=sum(row.shard is not None for row in done),
            bytes=size,
            sha256=digest,
            source_sha256=source_sha256,
            stats=stats.to_json(),
        )
        return info, done

    def _read(self, row: SourceRow) -> tuple[bytes, bytes]:
        return read_pair(row, self._recipe.source)


def _is_settled(row: SourceRow) -> bool:
    return bool(row.dhash) or (row.reject_code is not None and row.reject_code not in TRANSIENT)
