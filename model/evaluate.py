"""What a trained network is worth on the test split: metrics, pictures, the class table."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from schemas.challenge import challenge_score, has_challenge_classes, without_hood
from schemas.classes import VOID
from schemas.config import TrainConfig
from schemas.manifest import Manifest
from schemas.picture import PanelRow, panel
from schemas.stats import ConfusionMatrix

_EXAMPLES = 6


def evaluate(
    model: Any, folder: Path, manifest: Manifest, config: TrainConfig, scratch: Path
) -> tuple[dict[str, float], ConfusionMatrix]:
    """Test metrics and confusion matrix; draws the first test images into ``examples.png``."""
    import keras

    from model.dataset import batches

    taxonomy = manifest.taxonomy
    classes = len(taxonomy)
    scored = has_challenge_classes(taxonomy)
    loss_of = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=VOID, reduction="sum"
    )
    matrix = hoodless = ConfusionMatrix.zero(classes)
    loss = 0.0
    rows: list[PanelRow] = []
    for images, masks in batches(folder, manifest, "test", config.batch_size):
        logits = model(images, training=False)
        loss += float(loss_of(masks, logits))
        predicted = np.argmax(logits, axis=-1).astype(np.uint8)
        for image, true, found in zip(
            images.numpy(), masks.numpy()[..., 0], predicted, strict=True
        ):
            one = ConfusionMatrix.of(true, found, classes)
            matrix += one
            if scored:
                hoodless += ConfusionMatrix.of(without_hood(true, taxonomy), found, classes)
            if len(rows) < _EXAMPLES:
                caption = f"pixel accuracy {one.pixel_accuracy():.3f}"
                rows.append(PanelRow(caption, image, [true, found]))
    panel(rows, ("input", "truth", "prediction"), taxonomy).save(scratch / "examples.png")
    metrics = {
        "test_loss": loss / max(1, int(matrix.counts.sum())),
        "test_pixel_accuracy": matrix.pixel_accuracy(),
        "test_mean_iou": matrix.mean_iou(),
        "test_frequency_weighted_iou": matrix.frequency_weighted_iou(),
    }
    if scored:
        score = challenge_score(hoodless, taxonomy)
        metrics |= {f"test_{name}": value for name, value in score.items()}
    return metrics, matrix


def draw_curves(history: dict[str, list[float]], path: Path) -> None:
    """Loss, pixel accuracy and mean IoU by epoch, training and validation."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
    for axis, name in zip(axes, ("loss", "pixel_accuracy", "mean_iou"), strict=True):
        for prefix, label in (("", "train"), ("val_", "validation")):
            values = history[prefix + name]
            axis.plot(range(1, len(values) + 1), values, label=label)
        axis.set_title(name.replace("_", " "))
        axis.set_xlabel("epoch")
        axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_confusion(matrix: ConfusionMatrix, manifest: Manifest, path: Path) -> None:
    """Confusion matrix of the test split; each row is a true class, in shares of its pixels."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = manifest.taxonomy.names
    shares = matrix.counts / np.maximum(matrix.true_pixels, 1)[:, None]
    figure, axis = plt.subplots(figsize=(8, 7), layout="constrained")
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


def write_class_table(matrix: ConfusionMatrix, manifest: Manifest, path: Path) -> None:
    """CSV of the test split: class, true pixels, IoU, precision, recall; empty where undefined."""
    lines = ["class_id,class_name,true_pixels,iou,precision,recall"]
    for label, pixels, *shares in zip(
        manifest.taxonomy.classes,
        matrix.true_pixels,
        matrix.iou(),
        matrix.precision(),
        matrix.recall(),
        strict=True,
    ):
        shown = ",".join("" if math.isnan(share) else f"{share:.6f}" for share in shares)
        lines.append(f"{label.id},{label.name},{pixels},{shown}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
