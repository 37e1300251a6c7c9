"""Groups of a split's images that belong together, such as stretches of a drive."""

from __future__ import annotations

from runtime.parquet import read_footer, read_table
from runtime.storage import join
from schemas.layout import SOURCES


def groups_of(folder: str, split: str) -> list[str]:
    """The group of each record of a split, in the order of its shards.

    Datasets of earlier versions have no groups: each image is its own.

    Args:
        folder: folder or URI of a published dataset.
    """
    place = join(folder, SOURCES)
    known = "group" in read_footer(place).schema.to_arrow_schema().names
    columns = ["split", "shard", "offset", "group"] if known else ["split", "shard", "id"]
    table = read_table(place, columns=columns, filters=[("split", "==", split)])
    rows = table.filter(table["shard"].is_valid())
    if not known:
        return list(rows["id"].to_pylist())
    ordered = rows.sort_by([("shard", "ascending"), ("offset", "ascending")])
    return list(ordered["group"].to_pylist())
