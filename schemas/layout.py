"""Names of published files and folders: datasets, shards, partitions, runs."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata

SPLITS = ("train", "validation", "test")

SPLIT_NAMES = {name: name for name in SPLITS} | {
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "testing": "test",
}
"""The split that each name of a folder, or in a list, stands for; names in lower case."""

MANIFEST = "manifest.json"
REJECTS = "rejects.parquet"
SOURCES = "sources.parquet"

TRAINING_STATE = "outputs/training"
"""Default folder for the checkpoints of unfinished trainings."""

OPENVINO_GRAPH = "unet.xml"
"""The network in OpenVINO's format; its weights are beside it in ``unet.bin``."""

VALIDATION = "validation"
"""Key in a model's metadata of its predictions on the validation split, a ``drift.Profile``."""

GRAPH_SOURCE = "keras_sha256"
"""Key in a graph's runtime info of the hash of the ``.keras`` file it was exported from."""

_MAX_NAME_BYTES = 120
"""Of a folder's name: file systems take 255, with ``model=`` before it."""

_LOOKS_TYPED = re.compile(
    r"_*((?=.*\d)[-+.\dTZ_e]+|0[xb][\da-f_]+|true|false|yes|no|null|none|nan|na|n/a|inf|infinity|"
    r"epoch|hive_default_partition__)",
    re.IGNORECASE,
)
"""Values that a reader may take for a number, date, time, boolean or missing value."""

LEGACY_FOLDERS = {"rejects": "_rejects"}
"""Folders of tables in earlier versions, by the table's name."""

STAGING_PREFIX = ".staging-"
"""Prefix of folders that are work in progress; readers skip them."""


def shard_name(dataset: str, split: str, index: int, shards: int) -> str:
    """File name of one shard, as TFDS writes it: ``lyft-train.tfrecord-00000-of-00008``."""
    return f"{dataset}-{split}.tfrecord-{index:05d}-of-{shards:05d}"


def version_name(fingerprint: str) -> str:
    """Folder of a dataset version: the first 12 digits of its fingerprint."""
    return fingerprint[:12]


def partition_path(model: str, version: str, source: str) -> str:
    """Hive partition of one model version over one source; versions are written ``v3``."""
    parts = {"model": model, "version": version, "source": source}
    for key, value in parts.items():
        if value != safe_name(value):
            raise ValueError(f"{key} {value!r} cannot name a folder")
    return "/".join(f"{key}={partition_value(value)}" for key, value in parts.items())


def partition_value(value: str) -> str:
    """A partition's value in a form that every reader takes for text.

    DuckDB reads ``2024-05-01`` as a date, Polars ``001`` as a number; with an underscore in front,
    they are text. Names that begin with one get another, so that no two values become the same.
    """
    return f"_{value}" if _LOOKS_TYPED.fullmatch(value) else value


def dataset_source_name(name: str, fingerprint: str, split: str) -> str:
    """Source name of a dataset version, or of one split of it: ``lyft-b3b11c37``."""
    return f"{name}-{fingerprint[:8]}" + ("" if split == "all" else f"-{split}")


def folder_source_name(folder: str) -> str:
    """Source name of a folder or URI of PNGs: its last part."""
    return safe_name(os.path.abspath(folder).rpartition("/")[2])


def part_file_name(run_id: str, index: int, parts: int) -> str:
    """File name of one part of a table inside a partition.

    It contains the run's id, so that a reader that listed one run's files never opens another's.
    """
    return f"{run_id}-{index:05d}-of-{parts:05d}.parquet"


def part_index(key: str, parts: int) -> int:
    """Index of the part that holds the rows of a key: an image's id, a path."""
    return part_hash(key) * parts >> 64


def part_hash(key: str) -> int:
    """Hash of a key, 0 to 2**64 - 1. Each part is a range of hashes."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())


def safe_name(text: str) -> str:
    """A folder name for a text; different texts have different names.

    It consists of letters and digits of any script, dots, dashes and underscores. If anything else
    was replaced, or the text was cut, the name ends with the first digits of the text's hash.
    """
    text = unicodedata.normalize("NFC", text)
    kept = "".join(character if _is_plain(character) else " " for character in text)
    kept = re.sub(" +", "-", kept).strip(".-")
    if kept and kept == text and len(kept.encode()) <= _MAX_NAME_BYTES:
        return text
    start = kept.encode()[: _MAX_NAME_BYTES - 9].decode(errors="ignore").rstrip(".-")
    return f"{start or 'unnamed'}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _is_plain(character: str) -> bool:
    # Many scripts write letters with combining marks, category M.
    is_mark = unicodedata.category(character).startswith("M")
    return character.isalnum() or character in "._-" or is_mark
