"""The Beam graph of the ingest job: raw image/mask pairs to a published TFRecord dataset."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from beam.ingest.doubt_report import check_doubts
from beam.ingest.incremental import (
    Job,
    PublishedShards,
    find_unchanged,
    prepare,
    version_folder,
)
from beam.ingest.join_previous import JoinPrevious
from beam.ingest.make_records import Deduplicate, MakeRecords
from beam.ingest.metadata import write_metadata
from beam.ingest.numbering import check_numbering
from beam.ingest.records import ProcessedPair, Recipe
from beam.ingest.reject_checks import check_rejects
from beam.ingest.reject_files import WriteRejects
from beam.ingest.split import LEFT_OUT, REMAINING, SplitWithoutLeaks
from beam.ingest.split_checks import check_splits
from beam.ingest.tfrecords import WriteShards
from beam.runners.run import pipeline_options, run_pipeline
from beam.shared import staging as stages
from beam.shared.crash_journal import ReadSettings, run_without_crashing_files
from beam.shared.list_pairs import FILES, UNPAIRED, ListPairs
from beam.shared.prefetch import BatchReads
from beam.shared.progress import show_progress
from beam.shared.source import source_of
from beam.shared.staged_listing import staged_listing
from runtime.command_line import log
from runtime.errors import disk_errors_as_user_errors
from runtime.storage import join
from schemas.config import IngestConfig
from schemas.layout import MANIFEST
from schemas.manifest import Manifest, load_manifest


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
    make_records = MakeRecords(recipe, staging.rows, staging.progress, staging.crashed)
    listed = root | "ListPairs" >> ListPairs(source, "ingest", staging.progress)
    pairs = (
        listed["pairs"]
        | "JoinPrevious" >> JoinPrevious(staging.previous)
        | "BatchReads" >> BatchReads(recipe.source)
        | "MakeRecords" >> beam.ParDo(make_records)
        | "GroupByBytes" >> beam.GroupByKey()
        | "Deduplicate" >> beam.ParDo(Deduplicate(staging.progress))
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
