"""Verifies published datasets and tables by their content hashes: ``python -m beam.verify PATH``.

Jobs verify what they build on, but on a store they trust objects that no later put has replaced.
This command reads every byte, and names each file that is missing or has changed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from beam.ingest.incremental import file_digests
from beam.shared.intact import has_digest
from runtime import listing, storage
from runtime.command_line import Parser, log, run_main
from runtime.errors import UnavailableError, UserError, first_line
from runtime.parquet import read_table
from runtime.storage import absolute, join
from schemas.layout import MANIFEST
from schemas.manifest import load_manifest
from schemas.published import RUN_FILE, checksums, run_file


def main(arguments: Sequence[str]) -> str:
    """The command line; returns the number of files."""
    parser = Parser(prog="python -m beam.verify", description=__doc__)
    parser.add_argument("places", nargs="+", help="datasets, tables, or a folder of several")
    args = parser.parse_args(arguments)
    files, damaged = 0, list[str]()
    for place in map(absolute, args.places):
        storage.require_folder(place, "place")
        before = files
        for name, expected in published_below(place):
            if isinstance(expected, str):
                log(f"{name}: {expected}")
                files += 1
                damaged.append(name)
                continue
            intact = storage.map_concurrently(lambda file: has_digest(*file), expected.items())
            failed = [file for file, ok in zip(expected, intact, strict=True) if not ok]
            log(f"{name}: {len(expected):,} files, {len(failed) or 'none'} damaged")
            files += len(expected)
            damaged += failed
        if files == before:
            raise UserError(f"{place!r} holds neither a dataset nor tables of predictions")
    if damaged:
        for file in damaged:
            log(f"  {file}")
        raise UserError(
            f"{len(damaged)} of {files:,} files are damaged or missing; remove them, and the job "
            "that published them makes them anew"
        )
    return f"{files:,} files are intact"


def published_below(place: str) -> Iterator[tuple[str, dict[str, str] | str]]:
    """Dataset versions and partitions of tables below a folder, each with its files' SHA-256.

    If the file that lists them is damaged, its place is yielded, with the reason.
    """
    for file in listing.walk(place):
        path = PurePosixPath(file.path)
        folder = join(place, str(path.parent)) if path.parent.name else place
        try:
            if path.name == MANIFEST:
                yield folder, file_digests(folder, load_manifest(folder))
            elif path.name == RUN_FILE:
                root, _, partition = folder.rpartition("/runs/")
                read_table(run_file(root, partition))
                yield folder, checksums(root, partition)
        except UnavailableError:
            raise
        except (UserError, OSError, ValueError) as error:
            yield join(folder, path.name), first_line(error)


if __name__ == "__main__":
    sys.exit(run_main(main))
