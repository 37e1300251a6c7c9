"""Reports for MLflow: training curves, confusion matrix, table of classes, model card, Markdown."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.evaluation import Evaluation, class_rows
from model.plan import Plan
from model.seen import SEEN_IN
from schemas.manifest import FEW_GROUPS, Manifest
from schemas.stats import ConfusionMatrix

_INTENDED_USE = (
    "Classes of street scenes like those it was trained on. Not for driving: nothing here says "
    "how it does on other cameras, weather or towns."
)


def draw_curves(epochs: list[dict[str, float]], path: Path) -> None:
    """Loss, pixel accuracy and mean IoU by epoch, training and validation."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
    for axis, name in zip(axes, ("loss", "pixel_accuracy", "mean_iou"), strict=True):
        for prefix, label in (("", "train"), ("val_", "validation")):
            values = [epoch[prefix + name] for epoch in epochs]
            # Markers show a single epoch, which has no line.
            axis.plot(range(1, len(values) + 1), values, label=label, marker=".")
        axis.set_title(name.replace("_", " "))
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_confusion(matrix: ConfusionMatrix, names: tuple[str, ...], path: Path) -> None:
    """Confusion matrix; each row is a true class, as shares of its pixels."""
    plt = _pyplot()
    shares = matrix.counts / np.maximum(matrix.true_pixels, 1)[:, None]
    # Room for the names and figures of many classes, up to a picture of 20 megapixels.
    scale = min(max(1, len(names) / 16), 5)
    figure, axis = plt.subplots(figsize=(8 * scale, 7 * scale), layout="constrained")
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(shares.shape):
        if shares[row, column] >= 0.005:
            colour = "white" if shares[row, column] > 0.6 else "black"
            text = f"{shares[row, column]:.2f}"
            axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
    axis.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write_class_table(evaluation: Evaluation, path: Path) -> None:
    """CSV of the test split: class, true pixels, IoU, precision, recall; empty if undefined.

    pandas needs ``keep_default_na=False, na_values=[""]``, or takes class None for a missing value.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        # Names may hold commas and quotes.
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["class_id", "class_name", "true_pixels", "iou", "precision", "recall"])
        writer.writerows(
            [_cell(value) for value in row.values()]
            for row in class_rows(evaluation.matrix, evaluation.taxonomy)
        )


_MEAN_IOU = (
    "Mean IoU: the IoU of each class over all images, averaged over the classes that occur in the "
    "truth or the prediction of any of them"
)


def model_card(plan: Plan, evaluation: Evaluation, best_epoch: int, parameters: int) -> str:
    """The model card, in Markdown: the model, its training data and its evaluation.

    Its headings follow Mitchell et al., "Model Cards for Model Reporting", 2019.
    """
    config, manifest = plan.config, plan.manifest
    counts = {split: info.records for split, info in manifest.splits.items()}
    output = f"logits of {len(plan.taxonomy)} classes of {plan.taxonomy.name}"
    if len(plan.taxonomy) == 2:
        output = (
            f"one logit, whose sigmoid is the probability of {plan.taxonomy.names[1]}, for the "
            f"two classes of {plan.taxonomy.name}"
        )
    model = (
        f"{config.architecture}, {config.filters} filters, normalisation {config.normalisation}, "
        f"{parameters:,} parameters. RGB of any size in; {output} out."
    )
    data = (
        f"Dataset {manifest.name}, fingerprint `{manifest.fingerprint}`: {counts['train']:,} "
        f"training, {counts['validation']:,} validation and {counts['test']:,} test images of "
        f"{manifest.config.width}x{manifest.config.height}, split by {manifest.config.split_by}; "
        f"the test images are of {manifest.splits['test'].groups:,} groups that belong together."
    )
    recipe = (f"| {name} | {value} |" for name, value in config.model_dump().items())
    sections = [
        f"# {config.model_name}",
        f"## Model\n\n{model}",
        f"## Intended use\n\n{_INTENDED_USE}",
        "\n".join(["## Training data", "", data, *(f"- {text}" for text in manifest.warnings)]),
        "\n".join(["## Recipe", "", "| parameter | value |", "| --- | --- |", *recipe]),
        f"The weights of epoch {best_epoch} were kept (`keep={config.keep}`).",
        "\n".join(["## Test split", "", *_figures(evaluation)]),
    ]
    return "\n\n".join(sections)


def evaluation_report(
    uri: str,
    manifest: Manifest,
    evaluation: Evaluation,
    splits: Sequence[str],
    groups: int,
    seen: int | None,
    trained_at: tuple[int, int],
) -> str:
    """Markdown: the metrics of a version on a dataset, and those of each class.

    Args:
        groups: number of groups of images that belong together.
        seen: number of images that the version has seen in training; None if it is not known.
        trained_at: width and height of the images that it was trained on.
    """
    images = (
        f"{len(evaluation.counts):,} images of {manifest.config.width}x{manifest.config.height}, "
        f"in {groups:,} groups that belong together"
    )
    if groups < FEW_GROUPS:
        images += f", fewer than {FEW_GROUPS}: they say little of other places"
    title = f"# {uri} on {manifest.name} {manifest.fingerprint[:12]}, {', '.join(splits)}"
    lines = [title, "", f"{images}.", ""]
    if trained_at != (manifest.config.width, manifest.config.height):
        width, height = trained_at
        resized = f"The model was trained on {width}x{height}, to which they are resized for it."
        lines += [resized, ""]
    if seen is None:
        unknown = "Whether the model has seen them in training is not known: its dataset is gone."
        lines += [unknown, ""]
    elif seen:
        flattered = (
            f"**{seen:,} of them are in the {' or '.join(SEEN_IN)} split of a dataset that the "
            "model, or the one it started from, was trained on, so these figures are better than "
            "on unseen images.**"
        )
        lines += [flattered, ""]
    return "\n".join([*lines, *_figures(evaluation)])


def _figures(evaluation: Evaluation) -> list[str]:
    """Lines of Markdown: metrics over all images, and those of each class."""
    metrics = evaluation.metrics("")
    classes = list(class_rows(evaluation.matrix, evaluation.taxonomy))
    absent = [row["class_name"] for row in classes if math.isnan(row["iou"])]
    left_out = f"; {', '.join(absent)} occur in neither and are left out" if absent else ""
    frames = evaluation.frames
    sizes = (
        "The metrics are of pixels of the dataset's images; frame_ stands before those at the "
        "frames' own size."
        if frames
        else "All figures are of pixels of the dataset's images."
    )
    columns = ["class", "true pixels", "IoU", "precision", "recall"]
    rows = [
        [row["class_name"], f"{row['true_pixels']:,}"]
        + [_cell(row[name], 3) for name in ("iou", "precision", "recall")]
        for row in classes
    ]
    if frames:
        columns.append("IoU at the frames' size")
        rows = [[*row, _cell(float(iou), 3)] for row, iou in zip(rows, frames.iou(), strict=True)]
    return [
        *_table(["metric", "value"], [[name, f"{value:.4f}"] for name, value in metrics.items()]),
        f"{_MEAN_IOU}{left_out}. {sizes}",
        "",
        *_table(columns, rows),
    ]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, numbers right-aligned after the first column, and a blank line."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def _cell(value: Any, digits: int = 6) -> str:
    if not isinstance(value, float):
        return str(value)
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt
