"""Removes old dataset versions that nothing refers to: ``python -m beam.prune``.

A version stays if a registered model was trained on it, if published tables name it, or if it is
among the newest of its dataset. Without ``--delete``, nothing is removed.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from beam.infer.model_uri import training_datasets
from beam.shared import staging
from runtime import listing, storage
from runtime.command_line import Parser, add_tracking_uri, log, run_main
from runtime.errors import UserError
from runtime.parquet import read_table
from runtime.storage import OUTPUTS, join
from schemas.layout import MANIFEST, STAGING_PREFIX
from schemas.manifest import Manifest, load_manifest
from schemas.published import partitions, run_file

_MIB = 1 << 20


@dataclass(frozen=True)
class Version:
    """A version of a dataset.

    Attributes:
        kept_because: why it stays; empty if it may go.
    """

    folder: str
    manifest: Manifest
    modified: float
    kept_because: str = ""

    @property
    def size(self) -> int:
        """Bytes of its shards."""
        return sum(split.bytes for split in self.manifest.splits.values())


def main(arguments: Sequence[str]) -> str:
    """The command line; returns a line for each version, and the sum."""
    parser = Parser(prog="python -m beam.prune", description=__doc__)
    parser.add_argument("--datasets", default=f"{OUTPUTS}/datasets", help="root of the datasets")
    parser.add_argument(
        "--predictions", nargs="*", default=[f"{OUTPUTS}/predictions"], help="roots of the tables"
    )
    parser.add_argument("--keep", type=int, default=2, help="newest versions that stay (2)")
    parser.add_argument("--delete", action="store_true", help="remove what may go")
    add_tracking_uri(parser)
    args = parser.parse_args(arguments)
    if args.keep < 1:
        raise UserError(f"--keep={args.keep}: expected at least 1, the version that is in use")
    used = references(args.tracking_uri, args.predictions)
    found = [
        one
        for name in dataset_folders(args.datasets)
        for one in list_versions(name, used, args.keep)
    ]
    if not found:
        raise UserError(f"{args.datasets!r} holds no dataset")
    if args.delete:
        for one in found:
            if not one.kept_because:
                remove_version(one)
    return "\n".join(_lines(found, deleted=args.delete))


def references(tracking_uri: str, predictions: Sequence[str]) -> dict[str, str]:
    """What refers to each fingerprint: a registered model, or a row of a table of runs."""
    used: dict[str, str] = {}
    for root in predictions:
        for partition in partitions(root):
            columns = ["dataset_fingerprint", "training_fingerprint"]
            (row,) = read_table(run_file(root, partition), columns=columns).to_pylist()
            used |= {one: f"{root}: {partition}" for one in row.values() if one}
    return used | training_datasets(tracking_uri)


def dataset_folders(root: str) -> Iterator[str]:
    """Folders of the datasets below their root."""
    for name in listing.folders(root):
        if not name.startswith("."):
            yield join(root, name)


def list_versions(dataset: str, used: dict[str, str], keep: int) -> list[Version]:
    """The versions of a dataset, newest first, each with the reason why it stays, if any."""
    found = []
    running = False
    staging.remove_dead_staging(dataset)
    for name in listing.folders(dataset):
        running |= name.startswith(STAGING_PREFIX)
        folder = join(dataset, name)
        if not name.startswith(".") and storage.is_file(join(folder, MANIFEST)):
            modified = storage.modified(join(folder, MANIFEST))
            found.append(Version(folder, load_manifest(folder), modified))
    found.sort(key=lambda one: one.modified, reverse=True)
    return [
        Version(
            one.folder,
            one.manifest,
            one.modified,
            used.get(one.manifest.fingerprint)
            or (f"one of the newest {keep}" if at < keep else "")
            or ("an ingest is running, which may read it" if running else ""),
        )
        for at, one in enumerate(found)
    ]


def remove_version(version: Version) -> None:
    """Removes a version: first its manifest, without which it is no dataset, then the rest."""
    log(f"removing {version.folder}")
    storage.remove(join(version.folder, MANIFEST))
    storage.remove_tree(version.folder)


def _lines(found: Sequence[Version], *, deleted: bool) -> Iterator[str]:
    totals: dict[bool, list[int]] = defaultdict(list)
    for one in found:
        totals[bool(one.kept_because)].append(one.size)
        what = (
            f"stays: {one.kept_because}" if one.kept_because else "removed" if deleted else "may go"
        )
        records = f"{one.manifest.records:,} records, {one.size / _MIB:,.1f} MiB"
        yield f"{one.folder}  {records}  {what}"
    gone = totals[False]
    size = f"{sum(gone) / _MIB:,.1f} MiB of shards"
    if not gone:
        yield "nothing to remove"
    elif deleted:
        yield f"removed {len(gone)} versions, {size}"
    else:
        yield f"{len(gone)} versions may go, {size}: add --delete"


if __name__ == "__main__":
    sys.exit(run_main(main))
