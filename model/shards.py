"""Local cache of a dataset's shards: those on a store are downloaded once and verified.

The cache is keyed by checksum, so that the next dataset version reuses unchanged shards. Shards
that no training has used for 30 days are deleted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from runtime import storage
from runtime.atomic_files import replacing
from runtime.errors import UserError
from schemas.manifest import ShardInfo

_MAX_UNUSED_S = 30 * 24 * 3600


def cache_folder() -> Path:
    """Folder of the cache: below XDG_CACHE_HOME, or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "lyft-unet-pipeline/shards")


def shard_paths(dataset: str, shards: Iterable[ShardInfo]) -> list[str]:
    """Local paths of a dataset's shards, in order.

    Shards of a local dataset are checked only by size; their records have checksums of their own.

    Raises:
        UserError: a shard is missing or damaged, or the cache cannot be written.
        UnavailableError: the store does not answer.
    """
    if not storage.is_remote(dataset):
        return [_local_shard(dataset, shard) for shard in shards]
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        paths = storage.map_concurrently(lambda shard: _cached_shard(dataset, shard, cache), shards)
        _delete_unused(cache)
    except OSError as error:
        raise UserError(
            f"dataset {dataset!r} cannot be staged in {cache} ({error.strerror or error}); "
            "XDG_CACHE_HOME names another place"
        ) from error
    return [str(path) for path in paths]


def unusable(dataset: str, shard: ShardInfo, problem: str) -> UserError:
    """The error that names a shard and what is wrong with it."""
    return UserError(
        f"dataset {dataset!r}: shard {shard.name} {problem}; ingest again to repair it"
    )


def _local_shard(dataset: str, shard: ShardInfo) -> str:
    path = storage.join(dataset, shard.name)
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise unusable(dataset, shard, f"cannot be read ({error.strerror})") from error
    if size != shard.bytes:
        raise unusable(dataset, shard, f"has {size:,} bytes, expected {shard.bytes:,}")
    return path


def _cached_shard(dataset: str, shard: ShardInfo, cache: Path) -> Path:
    path = cache / shard.sha256
    if path.is_file() and storage.file_sha256(path) == shard.sha256:
        os.utime(path)
        return path
    with replacing(path) as part:
        try:
            storage.fetch(storage.join(dataset, shard.name), part)
        except FileNotFoundError as error:
            raise unusable(dataset, shard, "is missing") from error
        if storage.file_sha256(part) != shard.sha256:
            raise unusable(dataset, shard, "is damaged")
    return path


def _delete_unused(cache: Path) -> None:
    for path in cache.iterdir():
        # Another training may delete it first.
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _MAX_UNUSED_S:
                path.unlink()
