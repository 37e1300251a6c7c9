"""HTML report of a run, as one file: ``python -m analysis.report``.

The file is self-contained: it loads nothing and runs no script. The same tables and pictures give
the same bytes.
"""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from analysis.charts import heatmap, histogram
from analysis.pictures import Scene, dataset_of, load_scenes, taxonomy_of
from analysis.tables import add_run_options, connect, partition_key, reading, select_run
from images.panels import VOID_COLOUR, WRONG_COLOUR
from runtime.atomic_files import replacing
from runtime.command_line import Parser, run_main
from runtime.errors import UserError
from runtime.storage import is_remote
from schemas.classes import Taxonomy
from schemas.manifest import FEW_GROUPS, load_manifest
from schemas.stats import ConfusionMatrix

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

TEMPLATE = "report.html.j2"

MISSING = "\N{EN DASH}"
"""Stands for an unknown or undefined figure."""

_IMAGES_PER_SECTION = 4

_MAX_WIDTH, _MAX_HEIGHT = 400, 4_000
"""Of a picture in the file, in pixels. WebP takes no more than 16,383."""


@dataclass(frozen=True)
class ClassFigures:
    """One class of a run; None stands for unknown or undefined values.

    Attributes:
        share: share of all predicted pixels.
        images: number of images with at least one predicted pixel of the class.
        iou, precision, recall: over the test split, or without its truth over all images.
    """

    name: str
    colour: str
    share: float
    images: int
    confidence: float | None
    iou: float | None
    precision: float | None
    recall: float | None


@dataclass(frozen=True)
class SplitFigures:
    """Images and metrics of one split; None if the truth is unknown."""

    name: str
    images: int
    confidence: float
    accuracy: float | None
    mean_iou: float | None
    weighted_iou: float | None


def report(
    connection: DuckDBPyConnection,
    run: dict[str, Any],
    dataset: str | None = None,
    *,
    mlflow: str | None = None,
    prefect: str | None = None,
) -> str:
    """The HTML page for one row of ``runs``.

    Args:
        dataset: folder of the dataset that was predicted, if it has moved.
        mlflow, prefect: addresses of the servers' pages, to link to.

    Raises:
        UserError: ``dataset`` is not the one that was predicted.
    """
    import jinja2

    taxonomy = taxonomy_of(connection, run)
    splits = split_figures(connection, run, taxonomy)
    test = [split for split in splits if split.name == "test" and split.accuracy is not None]
    scope = "test" if test else None
    matrix = _load_matrix(connection, run, len(taxonomy), scope)
    quality = connection.execute(
        "SELECT mean_confidence, coalesce(mean_iou, 'nan'::DOUBLE) AS mean_iou FROM image_quality"
        " WHERE (model, version, source) = ($model, $version, $source)",
        partition_key(run),
    ).fetchnumpy()
    gallery = list(_gallery(connection, run, dataset, has_truth=matrix is not None))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"share": _format_share, "figure": _format_figure, "file_uri": _file_uri}
    return environment.get_template(TEMPLATE).render(
        run=run,
        links=_link_addresses(run, mlflow, prefect),
        taxonomy=taxonomy,
        scope=scope,
        groups=_test_groups(run, dataset) if scope else 0,
        few_groups=FEW_GROUPS,
        matrix=matrix,
        overall=_overall(matrix, test or splits),
        splits=splits,
        classes=class_figures(connection, run, taxonomy, matrix),
        confidence=histogram(quality["mean_confidence"], "mean confidence"),
        iou=histogram(quality["mean_iou"], "mean IoU") if matrix else None,
        heatmap=heatmap(_row_shares(matrix), taxonomy.names) if matrix else None,
        gallery=gallery,
        truth_missing=any(
            image["pixel_accuracy"] is not None
            and "Truth" not in [picture["name"] for picture in image["pictures"]]
            for section in gallery
            for image in section["images"]
        ),
        rejects=connection.execute(
            "SELECT stage, code, count(*), any_value(message ORDER BY source_uri) FROM rejects"
            " WHERE (model, version, source) = ($model, $version, $source)"
            " GROUP BY ALL ORDER BY 3 DESC, 1, 2",
            partition_key(run),
        ).fetchall(),
        wrong="#" + bytes(WRONG_COLOUR).hex(),
        unjudged="#" + bytes(VOID_COLOUR).hex(),
    )


def class_figures(
    connection: DuckDBPyConnection,
    run: dict[str, Any],
    taxonomy: Taxonomy,
    matrix: ConfusionMatrix | None,
) -> list[ClassFigures]:
    """The classes of a run, from the most to the least common."""
    rows = connection.execute(
        "SELECT class_id, sum(pixel_count) / sum(sum(pixel_count)) OVER (),"
        " count(*) FILTER (pixel_count > 0),"
        " sum(mean_confidence * pixel_count) / nullif(sum(pixel_count), 0)"
        " FROM class_stats WHERE (model, version, source) = ($model, $version, $source)"
        " GROUP BY class_id ORDER BY 2 DESC, 1",
        partition_key(run),
    ).fetchall()
    iou, precision, recall = (
        (matrix.iou(), matrix.precision(), matrix.recall()) if matrix else (None, None, None)
    )

    def metric(values: Any, class_id: int) -> float | None:
        return None if values is None or np.isnan(values[class_id]) else float(values[class_id])

    return [
        ClassFigures(
            name=taxonomy.names[class_id],
            colour="#" + bytes(taxonomy.classes[class_id].colour).hex(),
            share=share,
            images=images,
            confidence=confidence,
            iou=metric(iou, class_id),
            precision=metric(precision, class_id),
            recall=metric(recall, class_id),
        )
        for class_id, share, images, confidence in rows
    ]


def split_figures(
    connection: DuckDBPyConnection, run: dict[str, Any], taxonomy: Taxonomy
) -> list[SplitFigures]:
    """Figures of each split; a run over image files has a single split, ``all``."""
    rows = connection.execute(
        "SELECT split, count(*), avg(mean_confidence) FROM masks"
        " WHERE (model, version, source) = ($model, $version, $source)"
        " GROUP BY split ORDER BY list_position(['train', 'validation', 'test'], split)",
        partition_key(run),
    ).fetchall()
    figures = []
    for split, images, confidence in rows:
        matrix = _load_matrix(connection, run, len(taxonomy), split)
        figures.append(
            SplitFigures(
                name=split or "all",
                images=images,
                confidence=confidence,
                accuracy=matrix.pixel_accuracy() if matrix else None,
                mean_iou=matrix.mean_iou() if matrix else None,
                weighted_iou=matrix.frequency_weighted_iou() if matrix else None,
            )
        )
    return figures


def _test_groups(run: dict[str, Any], dataset: str | None) -> int:
    """Number of groups of images in the predicted dataset's test split; 0 if not known."""
    folder = dataset_of(run, dataset)
    return load_manifest(folder).splits["test"].groups if folder else 0


def _overall(matrix: ConfusionMatrix | None, splits: list[SplitFigures]) -> dict[str, float | None]:
    images = sum(split.images for split in splits)
    return {
        "accuracy": matrix.pixel_accuracy() if matrix else None,
        "mean_iou": matrix.mean_iou() if matrix else None,
        "confidence": sum(split.confidence * split.images for split in splits) / images,
    }


def _load_matrix(
    connection: DuckDBPyConnection, run: dict[str, Any], classes: int, split: str | None
) -> ConfusionMatrix | None:
    """The confusion matrix of a split, or of all images; None if no truth is known."""
    counts = np.zeros((classes, classes), np.int64)
    rows = connection.execute(
        "SELECT true_class_id, predicted_class_id, pixel_count FROM confusion"
        " WHERE (model, version, source) = ($model, $version, $source)"
        " AND ($split IS NULL OR split = $split)",
        partition_key(run) | {"split": split},
    ).fetchall()
    for true, predicted, pixels in rows:
        counts[true, predicted] += pixels
    return ConfusionMatrix(counts) if counts.any() else None


def _row_shares(matrix: ConfusionMatrix) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(matrix.counts / np.maximum(matrix.true_pixels, 1)[:, None])


def _gallery(
    connection: DuckDBPyConnection, run: dict[str, Any], dataset: str | None, *, has_truth: bool
) -> Iterator[dict[str, Any]]:
    """Yields sections of worst, best and random images, by IoU or without truth by confidence."""
    key, name = ("mean_iou", "IoU") if has_truth else ("mean_confidence", "confidence")
    taken: list[str] = []
    for title, order in (
        (f"Lowest {name}", f"{key}, image_id"),
        (f"Highest {name}", f"{key} DESC, image_id"),
        ("Random", "md5(image_id), image_id"),
    ):
        result = connection.execute(
            f"SELECT image_id, split, source_uri, mean_iou, pixel_accuracy, mean_confidence,"  # noqa: S608
            f" worst_class, worst_iou FROM image_quality"
            f" WHERE (model, version, source) = ($model, $version, $source)"
            f" AND {key} IS NOT NULL AND NOT list_contains($taken, image_id)"
            f" ORDER BY {order} LIMIT {_IMAGES_PER_SECTION}",
            partition_key(run) | {"taken": taken},
        )
        names = [column[0] for column in result.description or ()]
        rows = [dict(zip(names, row, strict=True)) for row in result.fetchall()]
        ids = [row["image_id"] for row in rows]
        taken += ids
        if rows:
            scenes = load_scenes(connection, run, ids, dataset)
            images = [
                row | {"pictures": list(_pictures(scene))}
                for row, scene in zip(rows, scenes, strict=True)
            ]
            yield {"title": title, "images": images}


def _pictures(scene: Scene) -> Iterator[dict[str, Any]]:
    """Yields the pictures of one image, with their names."""
    for name, pixels in (
        ("Input", scene.image),
        ("Truth", scene.coloured_truth()),
        ("Prediction", scene.prediction()),
        ("Errors", scene.errors()),
    ):
        if pixels is not None:
            # Class colours are exact, and take a third of the bytes so.
            colours = name == "Truth" or (name == "Prediction" and scene.image is None)
            image = _shrink(Image.fromarray(pixels), exact=colours)
            width, height = image.size
            data = _data_uri(image, exact=colours)
            yield {"name": name, "width": width, "height": height, "data": data}


def _shrink(image: Image.Image, *, exact: bool) -> Image.Image:
    """The image, resized if it is larger than pictures are; at least one pixel in both directions.

    The height of a usual image follows from its width.
    """
    scale = min(1, _MAX_WIDTH / image.width, _MAX_HEIGHT / image.height)
    if scale == 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if exact else Image.Resampling.LANCZOS)


def _data_uri(image: Image.Image, *, exact: bool) -> str:
    out = io.BytesIO()
    image.save(out, "WEBP", quality=85, method=6, lossless=exact)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


def _link_addresses(run: dict[str, Any], mlflow: str | None, prefect: str | None) -> dict[str, str]:
    """Addresses to link to, by column of ``runs``."""
    links = {"source_uri": _file_uri(run["source_uri"])}
    if mlflow:
        links["mlflow_run_id"] = f"{mlflow}/#/runs/{run['mlflow_run_id']}"
        scheme, _, version = run["model_uri"].partition(":/")
        if scheme == "models":
            links["model_uri"] = f"{mlflow}/#/models/{version.replace('/', '/versions/')}"
    if prefect:
        links["flow_run_id"] = f"{prefect}/runs/flow-run/{run['flow_run_id']}"
    return {name: address for name, address in links.items() if address and run[name]}


def _file_uri(location: str) -> str:
    """A ``file://`` URI for a local path; empty for a store's URI, which a browser cannot open."""
    return "" if is_remote(location) else Path(location).as_uri()


def _format_share(value: float | None) -> str:
    """Per cent; distinguishes a rare class, below 0.1%, from an absent one."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    return f"{value:.1%}" if value >= 0.001 else "< 0.1%"


def _format_figure(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def write_page(page: str, path: Path) -> None:
    """Writes the file atomically.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as staged:
            staged.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"output {str(path)!r} is not writable: {error.strerror}") from error


def main(arguments: Sequence[str]) -> str:
    """The command line; returns the page's path."""
    parser = Parser(
        prog="python -m analysis.report",
        description="A run as one HTML file: classes, confusion, confidence, pictures, lineage.",
    )
    add_run_options(parser)
    parser.add_argument("--dataset", help="the dataset that was predicted, where it has moved")
    for server in ("mlflow", "prefect"):
        parser.add_argument(f"--{server}", help=f"http://HOST:PORT of {server}'s pages, to link to")
    parser.add_argument("--output", required=True, help="the HTML file")
    args = parser.parse_args(arguments)
    for server in ("mlflow", "prefect"):
        address = getattr(args, server)
        if address and not address.startswith(("http://", "https://")):
            raise UserError(f"--{server}={address}: expected http://HOST:PORT")
    with reading(args.predictions):
        connection = connect(args.predictions)
        page = report(
            connection,
            select_run(connection, args),
            args.dataset,
            mlflow=args.mlflow,
            prefect=args.prefect,
        )
    write_page(page, Path(args.output))
    return str(args.output)


if __name__ == "__main__":
    sys.exit(run_main(main))
