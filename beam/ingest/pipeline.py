"""The Beam graph of the ingest job: raw image/mask pairs to a published TFRecord dataset."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from beam.ingest.doubt_report import check_doubts
from beam.ingest.incremental import (
    Job,
    PublishedShards,
    find_unchanged,
    prepare,
    previous_pairs,
    version_folder,
)
from beam.ingest.metadata import write_metadata
from beam.ingest.numbering import check_numbering
from beam.ingest.record_files import RecordFiles
from beam.ingest.records import (
    DUPLICATE,
    ProcessedPair,
    Recipe,
    blame_file,
    deduplicate,
    process_pair,
    read_pair,
    reuse_if_unchanged,
    row_of,
)
from beam.ingest.reject_checks import check_rejects
from beam.ingest.reject_files import WriteRejects
from beam.ingest.split import LEFT_OUT, REMAINING, SplitWithoutLeaks
from beam.ingest.split_checks import check_splits
from beam.ingest.tfrecords import WriteShards
from beam.runners.run import pipeline_options, run_pipeline
from beam.shared import staging as stages
from beam.shared.crash_journal import (
    CrashJournal,
    ReadSettings,
    check_no_crash,
    run_without_crashing_files,
)
from beam.shared.list_pairs import FILES, UNPAIRED, ListPairs
from beam.shared.pairing import Pair
from beam.shared.prefetch import BatchReads, prefetch
from beam.shared.progress import CountingDoFn, show_progress
from beam.shared.source import source_of
from beam.shared.staged_listing import staged_listing
from runtime.command_line import log
from runtime.errors import disk_errors_as_user_errors
from runtime.storage import join
from schemas import software
from schemas.config import IngestConfig
from schemas.layout import MANIFEST
from schemas.manifest import Manifest, load_manifest
from schemas.sources import SourceRow


@dataclass(frozen=True)
class Staging:
    """Folders of a running job, and what it knows of the source.

    Attributes:
        dataset: the folder that will be published.
        rows: folder of records that wait for their shard, and of each shard's rows.
        progress: folder of the workers' counters and crash journals.
        listing: digest of the source's listing; listed: Parquet files of the listing.
        previous: a published version whose unchanged shards are reused.
        crashed: paths on which a decoder crashes.
    """

    dataset: str
    rows: str
    progress: str
    listing: str
    listed: tuple[str, ...] = ()
    previous: PublishedShards | None = None
    crashed: frozenset[str] = frozenset()


def build(root: beam.Pipeline, recipe: Recipe, staging: Staging) -> None:
    """Builds the graph from the source to shards and metadata in the staging folder."""
    source = replace(source_of(recipe.source, recipe.config), listed=staging.listed)
    listed = root | "ListPairs" >> ListPairs(source, "ingest", staging.progress)
    pairs = (
        listed["pairs"]
        | "JoinPrevious" >> JoinPrevious(staging.previous)
        | "BatchReads" >> BatchReads(recipe.source)
        | "MakeRecords" >> beam.ParDo(_MakeRecords(recipe, staging))
        | "GroupByBytes" >> beam.GroupByKey()
        | "Deduplicate" >> beam.ParDo(_Deduplicate(staging.progress))
    )
    records = pairs | "Records" >> beam.Filter(lambda pair: pair.record is not None)
    rejected = (
        pairs
        | "Rejects" >> beam.Filter(lambda pair: pair.record is None)
        | "RejectRows" >> beam.Map(lambda pair: pair.row)
    )
    split = records | "Split" >> SplitWithoutLeaks(recipe.config, staging.progress)
    shards = split["records"] | "WriteShards" >> WriteShards(
        recipe, staging.dataset, staging.rows, staging.progress, staging.previous
    )
    left_out = (
        (rejected, split[LEFT_OUT], listed[UNPAIRED])
        | "AllRejects" >> beam.Flatten()
        | "WriteRejects" >> WriteRejects(staging.rows, recipe.source)
    )
    _ = (
        root
        | "Dataset" >> beam.Create([staging.dataset])
        | "WriteMetadata"
        >> beam.Map(
            write_metadata,
            recipe,
            staging.listing,
            staging.rows,
            beam.pvalue.AsList(shards),
            beam.pvalue.AsList(left_out),
            beam.pvalue.AsIter(split["records"] | "Repeated" >> RepeatedPictures()),
            beam.pvalue.AsDict(split["records"] | "CountGroups" >> CountGroups()),
            beam.pvalue.AsDict(listed[FILES]),
            beam.pvalue.AsIter(split[REMAINING]),
        )
    )


@disk_errors_as_user_errors()
def run(
    source: str, output: str, config: IngestConfig, options: PipelineOptions | None = None
) -> str:
    """Builds and publishes a dataset, or returns the published one if nothing has changed.

    Args:
        source: folder, archive or URI that holds the pairs.
        output: folder or URI below which ``<name>/<version>/`` is published.
        options: Beam's; all cores of this machine by default.

    Returns:
        The published folder.

    Raises:
        UserError: there is nothing to read, too many inputs are bad, or the output cannot be
            written.
    """
    with tempfile.TemporaryDirectory(prefix="lyft-listing-") as listing:
        job = prepare(source, output, config, listing)
        return find_unchanged(job) or publish_version(job, options)


@disk_errors_as_user_errors()
def publish_version(job: Job, options: PipelineOptions | None = None) -> str:
    """Builds and publishes a dataset; returns its folder. ``options`` as for ``run``.

    Raises:
        UserError: too many inputs are bad, or the output cannot be written.
    """
    with stages.staging_folder(job.datasets) as work, stages.local_work_folder(work) as own:
        staging = Staging(
            join(work, "dataset"),
            join(work, "rows"),
            progress=str(own / "progress"),
            listing=job.source_digest.digest,
            listed=staged_listing(job.listing, work),
            previous=PublishedShards.of(*job.published[0]) if job.published else None,
        )
        manifest = _stage(
            job.recipe, staging, job.source_digest.images, options or pipeline_options([])
        )
        final = version_folder(job.datasets, manifest)
        stages.publish(staging.dataset, final, MANIFEST)
    for warning in manifest.warnings:
        log(f"warning: {warning}")
    log(summary(manifest))
    return final


def _stage(recipe: Recipe, staging: Staging, images: int, options: PipelineOptions) -> Manifest:
    """Runs the pipeline and checks the staged dataset.

    Args:
        images: number of images that were listed.

    Raises:
        UserError: too many inputs are bad, or the splits are not usable.
    """
    folders = (staging.dataset, staging.rows)
    stages.make_folders(*folders)
    progress = Path(staging.progress)
    with show_progress("ingest", progress, images, "pairs"):
        run_without_crashing_files(
            lambda crashed: run_pipeline(
                lambda root: build(root, recipe, replace(staging, crashed=crashed)), options
            ),
            lambda: stages.empty_folders(*folders),
            progress,
            ReadSettings(recipe.source, recipe.config, recipe.taxonomy),
        )
    manifest = load_manifest(staging.dataset)
    check_rejects(manifest, staging.dataset)
    check_numbering(manifest)
    check_doubts(manifest, staging.dataset)
    check_splits(manifest, staging.dataset)
    return manifest


def summary(manifest: Manifest) -> str:
    """A few lines on a dataset: splits, rejects, doubts, near-duplicates."""
    splits = ", ".join(f"{name} {info.records:,}" for name, info in manifest.splits.items())
    rejects = ", ".join(f"{code} {count:,}" for code, count in manifest.rejects.items())
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in manifest.skipped.items())
    lines = [
        f"{manifest.records:,} records: {splits}",
        f"rejects: {rejects or 'none'}",
        f"files: {manifest.files_listed:,} listed, skipped: {skipped or 'none'}",
    ]
    if manifest.doubts:
        doubts = ", ".join(f"{code} {count:,}" for code, count in manifest.doubts.items())
        lines.append(f"doubtful: {manifest.doubtful:,} pairs ({doubts}), drawn in the data card")
    near = manifest.near_duplicates
    if near and near.pairs_across_splits:
        lines.append(
            f"near-duplicates across splits: {near.pairs_across_splits:,} pairs, "
            f"{near.images_across_splits:,} images, drawn in the data card"
        )
    return "\n".join(lines)


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


class RepeatedPictures(beam.PTransform):
    """Hashes of the pictures that occur in several records."""

    def expand(self, records: beam.PCollection[ProcessedPair]) -> beam.PCollection[str]:
        """The graph: count each, filter."""
        return (
            records
            | "Pictures" >> beam.Map(lambda pair: pair.row.picture)
            | "CountEach" >> beam.combiners.Count.PerElement()
            | "Several" >> beam.Filter(lambda counted: counted[1] > 1)
            | beam.Keys()
        )


class CountGroups(beam.PTransform):
    """Number of groups of images by split."""

    def expand(self, records: beam.PCollection[ProcessedPair]) -> beam.PCollection[tuple[str, int]]:
        """The graph: find the groups, count them."""
        return (
            records
            | "Groups" >> beam.Map(lambda pair: (pair.row.split, pair.row.group))
            | beam.Distinct()
            | beam.Keys()
            | beam.combiners.Count.PerElement()
        )


class _MakeRecords(CountingDoFn):
    """Reads, checks and encodes pairs, or reuses the records of an earlier version.

    Yields pairs keyed by the hashes of their bytes, so that duplicates meet.
    """

    def __init__(self, recipe: Recipe, staging: Staging) -> None:
        super().__init__("ingest", staging.progress)
        self._recipe = recipe
        self._records_folder = staging.rows
        self._journals = staging.progress
        self._crashed = staging.crashed

    def setup(self) -> None:
        super().setup()
        recipe = self._recipe
        self._journal = CrashJournal(
            self._journals, ReadSettings(recipe.source, recipe.config, recipe.taxonomy)
        )
        software.check(recipe.made_with, software.of_records())

    def start_bundle(self) -> None:
        self._files = RecordFiles(self._records_folder)

    def process(
        self, element: list[tuple[Pair, ProcessedPair | None]]
    ) -> Iterator[tuple[str, ProcessedPair]]:
        rows = [row_of(pair, self._recipe.config) for pair, _ in element]
        reused = [
            previous and reuse_if_unchanged(row, previous)
            for row, (_, previous) in zip(rows, element, strict=True)
        ]
        new = [row for row, pair in zip(rows, reused, strict=True) if pair is None]
        with self._journal.recording([(row.image_path, row.mask_path) for row in new]) as crashing:
            read_files = partial(self._read, crashed=self._crashed | crashing)
            processed = [
                process_pair(row, self._recipe, read, self._files)
                for row, read in prefetch(read_files, new, self._recipe.source)
            ]
        for previous in reused:
            pair = previous or processed.pop(0)
            row = pair.row
            if pair.record is None:
                self.counters.add(f"rejected.{row.reject_code}")
            else:
                self.counters.add("kept" if previous else "read")
            yield f"{row.image_sha256}{row.mask_sha256}" if row.image_sha256 else row.id, pair

    def _read(self, row: SourceRow, crashed: frozenset[str]) -> tuple[bytes, bytes]:
        for path in (row.image_path, row.mask_path):
            with blame_file(path):
                check_no_crash(path, crashed)
        return read_pair(row, self._recipe.source, self._recipe.config)

    def finish_bundle(self) -> None:
        self._files.close()
        super().finish_bundle()


class _Deduplicate(CountingDoFn):
    """Keeps one of the pairs that have the same bytes and rejects the others."""

    def __init__(self, progress: str) -> None:
        super().__init__("ingest", progress)

    def process(self, element: tuple[str, Iterable[ProcessedPair]]) -> Iterator[ProcessedPair]:
        for pair in deduplicate(element[1]):
            if pair.row.reject_code == DUPLICATE:
                self.counters.add("left out")
            yield pair
