"""Exports a run's masks as PNG files or COCO annotations: ``python -m analysis.masks``.

PNGs have the images' own names. The COCO annotations are one file, which CVAT imports; Label
Studio's converter takes no run length codes (docs/cookbook.md).
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from analysis.pictures import safe_path, taxonomy_of, unknown_image
from analysis.tables import add_run_options, connect, partition_key, reading, select_run
from images import panels
from images.png import decode_own
from runtime.command_line import Parser, log, run_main
from runtime.errors import UserError
from schemas.classes import Taxonomy, UInt8Array

COCO_FILE = "annotations.json"

_BATCH_ROWS = 256

Encode = Callable[[bytes], bytes]


def main(arguments: Sequence[str]) -> str:
    """The command line; returns the output folder."""
    parser = Parser(prog="python -m analysis.masks", description=__doc__)
    add_run_options(parser)
    parser.add_argument("--output", required=True, help="folder of the files")
    parser.add_argument("--ids", nargs="+", help="image ids of the table masks (default: all)")
    parser.add_argument(
        "--form",
        choices=("palette", "index", "colour", "coco"),
        default="palette",
        help="PNGs whose pixels are class ids, with the class colours as palette, or without; "
        "PNGs in the class colours; or COCO annotations (default: palette)",
    )
    args = parser.parse_args(arguments)
    try:
        with reading(args.predictions):
            connection = connect(args.predictions)
            run = select_run(connection, args)
            taxonomy = taxonomy_of(connection, run)
            if args.ids:
                _require_images(connection, run, args.ids)
            rows = _rows(connection, run, args.ids)
            if args.form == "coco":
                write_coco(rows, taxonomy, Path(args.output))
            else:
                written = write_pngs(rows, _encoders(taxonomy)[args.form], Path(args.output))
                if not args.ids:
                    _warn_of_others(Path(args.output), written)
    except OSError as error:
        raise UserError(f"output {args.output!r} is not writable: {error.strerror}") from error
    return str(args.output)


def write_pngs(rows: Iterator[dict[str, Any]], encode: Encode, folder: Path) -> int:
    """Writes each mask to ``<folder>/<image id>.png``; returns their number.

    Args:
        rows: of the table masks.
        encode: converts the stored palette PNG to the file's content.
    """
    written = 0
    for row in rows:
        path = folder / f"{safe_path(row['image_id'])}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(row["mask"]))
        written += 1
    log(f"{written:,} masks written")
    return written


def _warn_of_others(folder: Path, written: int) -> None:
    """Warns of PNGs that an earlier run has left, e.g. of images that are gone."""
    if others := sum(1 for _ in folder.rglob("*.png")) - written:
        log(f"warning: {others:,} other PNGs in {str(folder)!r} are no masks of this run")


def write_coco(rows: Iterator[dict[str, Any]], taxonomy: Taxonomy, folder: Path) -> None:
    """Writes one annotation per image and class, as an uncompressed run length code.

    A category's id is the class id plus 1, because tools read 0 as no category. Format: COCO's
    "stuff" annotations, https://cocodataset.org/#format-data.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, row in enumerate(rows, 1):
        mask = decode_own(row["mask"])
        suffix = PurePosixPath(row["source_uri"]).suffix
        images.append(
            {
                "id": number,
                "file_name": f"{row['image_id']}{suffix}",
                "height": mask.shape[0],
                "width": mask.shape[1],
            }
        )
        for class_id in np.unique(mask).tolist():
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": class_id + 1,
                    **_encode_region(mask == class_id),
                }
            )
    categories = [{"id": label.id + 1, "name": label.name} for label in taxonomy.classes]
    folder.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / COCO_FILE).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    log(f"{len(annotations):,} regions of {len(images):,} images written")


def _encode_region(inside: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, Any]:
    """Run lengths, area and bounding box (x, y, width, height) of a region (height, width)."""
    # COCO counts column by column, and the first run is outside the region.
    flat = inside.ravel(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return {
        "segmentation": {
            "size": list(inside.shape),
            "counts": [0, *counts] if flat[0] else counts,
        },
        "area": int(flat.sum()),
        "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
        # Tells readers that the segmentation is a run length code.
        "iscrowd": 1,
    }


def _encoders(taxonomy: Taxonomy) -> dict[str, Encode]:
    return {
        "palette": lambda data: data,
        "index": lambda data: _png(decode_own(data)),
        "colour": lambda data: _png(panels.colourise(decode_own(data), taxonomy)),
    }


def _png(pixels: UInt8Array) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def _rows(
    connection: Any, run: dict[str, Any], ids: Sequence[str] | None
) -> Iterator[dict[str, Any]]:
    """Yields the masks of a run in the order of their ids, fetched in batches."""
    parameters = partition_key(run) | {"ids": list(ids) if ids else None}
    selected = connection.execute(
        "SELECT image_id, source_uri, mask.bytes FROM masks"
        " WHERE (model, version, source) = ($model, $version, $source)"
        " AND ($ids::VARCHAR[] IS NULL OR list_contains($ids::VARCHAR[], image_id))"
        " ORDER BY image_id",
        parameters,
    )
    while rows := selected.fetchmany(_BATCH_ROWS):
        for image_id, source_uri, mask in rows:
            yield {"image_id": image_id, "source_uri": source_uri, "mask": mask}


def _require_images(connection: Any, run: dict[str, Any], ids: Sequence[str]) -> None:
    """Checks that a run has these images.

    Raises:
        UserError: an image is missing.
    """
    result = connection.execute(
        "SELECT image_id FROM masks"
        " WHERE (model, version, source) = ($model, $version, $source)"
        " AND list_contains($ids, image_id)",
        partition_key(run) | {"ids": list(ids)},
    )
    if missing := set(ids) - {image_id for (image_id,) in result.fetchall()}:
        raise unknown_image(run, min(missing))


if __name__ == "__main__":
    sys.exit(run_main(main))
