"""Removes old dataset versions that nothing refers to: ``python -m beam.prune``.

A version stays if a registered model was trained on it, if published tables name it, or if it is
among the newest of its dataset. Without ``--delete``, nothing is removed; with it, a misspelt place
of tables or models is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

from beam.infer.model_uri import training_datasets
from beam.shared import staging
from runtime import listing, storage
from runtime.command_line import Parser, add_tracking_uri, log, run_main
from runtime.errors import UserError, first_line
from runtime.mlflow_store import TRACKING_URI, sqlite_file
from runtime.parquet import read_table
from runtime.storage import OUTPUTS, join
from schemas.layout import MANIFEST, STAGING_PREFIX
from schemas.manifest import Manifest, load_manifest
from schemas.published import partitions, run_file

_MIB = 1 << 20
_PREDICTIONS = f"{OUTPUTS}/predictions"


@dataclass(frozen=True)
class Version:
    """A version of a dataset.

    Attributes:
        kept_because: why it stays; empty if it may go.
    """

    folder: str
    manifest: Manifest
    kept_because: str

    @property
    def size(self) -> int:
        """Bytes of its shards."""
        return sum(split.bytes for split in self.manifest.splits.values())


def main(arguments: Sequence[str]) -> str:
    """The command line; returns a line for each version, and the sum."""
    parser = Parser(prog="python -m beam.prune", description=__doc__)
    parser.add_argument("--datasets", default=f"{OUTPUTS}/datasets", help="root of the datasets")
    parser.add_argument(
        "--predictions", nargs="*", default=[_PREDICTIONS], help="roots of the tables"
    )
    parser.add_argument("--keep", type=int, default=2, help="newest versions that stay (2)")
    parser.add_argument("--delete", action="store_true", help="remove what may go")
    add_tracking_uri(parser)
    args = parser.parse_args(arguments)
    if args.keep < 1:
        raise UserError(f"--keep={args.keep}: expected at least 1, the version that is in use")
    used = references(args.tracking_uri, args.predictions)
    versions = [
        version
        for folder in dataset_folders(args.datasets)
        for version in list_versions(folder, used, args.keep)
    ]
    if not versions:
        raise UserError(
            f"{args.datasets!r} holds no dataset; name the --output of `python -m beam.ingest`"
        )
    # These need not exist, e.g. before the first training; any other was named by the user.
    usual = {_PREDICTIONS, str(sqlite_file(TRACKING_URI))}
    for place in _missing(args.tracking_uri, args.predictions):
        if args.delete and place not in usual:
            raise UserError(
                f"{place} does not exist, so nothing there would keep a version; nothing was "
                "removed: correct --predictions or --tracking_uri"
            )
        log(f"warning: {place} does not exist, so nothing there keeps a version")
    if args.delete:
        for version in versions:
            if not version.kept_because:
                remove_version(version)
    return "\n".join(_lines(versions, deleted=args.delete))


def _missing(tracking_uri: str, predictions: Sequence[str]) -> Iterator[str]:
    """The places of tables and models that do not exist, perhaps for a typing error."""
    yield from (root for root in predictions if not storage.is_folder(root))
    if (store := sqlite_file(tracking_uri)) and not store.exists():
        yield str(store)


def references(tracking_uri: str, predictions: Sequence[str]) -> dict[str, str]:
    """For each dataset fingerprint in use, the registered model or table that refers to it."""
    used: dict[str, str] = {}
    for root in predictions:
        for partition in partitions(root):
            columns = ["dataset_fingerprint", "training_fingerprint"]
            file = run_file(root, partition)
            try:
                (row,) = read_table(file, columns=columns).to_pylist()
            except (OSError, ValueError) as error:
                raise UserError(f"{file}: not the row of a run: {first_line(error)}") from error
            used |= {digest: f"{root}: {partition}" for digest in row.values() if digest}
    return used | training_datasets(tracking_uri)


def dataset_folders(root: str) -> Iterator[str]:
    """Folders of the datasets below their root."""
    for name in listing.folders(root):
        if not name.startswith("."):
            yield join(root, name)


def list_versions(dataset: str, used: dict[str, str], keep: int) -> list[Version]:
    """The versions of a dataset, newest first, each with the reason why it stays, if any."""
    versions = []
    running = False
    staging.remove_dead_staging(dataset)
    for name in listing.folders(dataset):
        running |= name.startswith(STAGING_PREFIX)
        folder, manifest_file = join(dataset, name), join(dataset, name, MANIFEST)
        if not name.startswith(".") and storage.is_file(manifest_file):
            versions.append((storage.modified(manifest_file), folder, load_manifest(folder)))
    versions.sort(key=itemgetter(0), reverse=True)
    return [
        Version(
            folder,
            manifest,
            used.get(manifest.fingerprint)
            or (f"one of the newest {keep}" if index < keep else "")
            or ("an ingest is running, which may read it" if running else ""),
        )
        for index, (_, folder, manifest) in enumerate(versions)
    ]


def remove_version(version: Version) -> None:
    """Removes a version, its manifest first: without it, no reader takes the rest for a dataset."""
    log(f"removing {version.folder}")
    storage.remove(join(version.folder, MANIFEST))
    storage.remove_tree(version.folder)


def _lines(versions: Sequence[Version], *, deleted: bool) -> Iterator[str]:
    for version in versions:
        outcome = "removed" if deleted else "may go"
        if version.kept_because:
            outcome = f"stays: {version.kept_because}"
        records = f"{version.manifest.records:,} records, {version.size / _MIB:,.1f} MiB"
        yield f"{version.folder}  {records}  {outcome}"
    sizes = [version.size for version in versions if not version.kept_because]
    size = f"{sum(sizes) / _MIB:,.1f} MiB of shards"
    if not sizes:
        yield "nothing to remove"
    elif deleted:
        yield f"removed {len(sizes)} versions, {size}"
    else:
        yield f"{len(sizes)} versions may go, {size}: add --delete"


if __name__ == "__main__":
    sys.exit(run_main(main))
