"""Pictures of a training."""

import csv
from pathlib import Path
from unittest.mock import Mock

import numpy as np
from PIL import Image

from model.reports import draw_confusion, draw_curves, write_class_table
from schemas.classes import ClassLabel, Taxonomy
from schemas.stats import ConfusionMatrix


def test_a_single_epoch_is_seen(tmp_path: Path) -> None:
    names = [p + n for p in ("", "val_") for n in ("loss", "pixel_accuracy", "mean_iou")]

    def orange_pixels(value: float) -> int:
        draw_curves([dict.fromkeys(names, value)], tmp_path / "curves.png")
        pixels = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB"))
        return int((pixels == (255, 127, 14)).all(axis=-1).sum())

    # The legend alone is drawn without a value.
    assert orange_pixels(0.5) > orange_pixels(float("nan"))


def test_a_table_of_classes_quotes_their_names(tmp_path: Path) -> None:
    names = ("Road, wet", 'the "rest"')
    labels = tuple(
        ClassLabel(id=number, name=name, colour=(0, 0, number)) for number, name in enumerate(names)
    )
    evaluation = Mock(
        matrix=ConfusionMatrix(np.eye(2, dtype=np.int64)),
        taxonomy=Taxonomy(name="commas", classes=labels),
    )
    write_class_table(evaluation, tmp_path / "classes.csv")
    with (tmp_path / "classes.csv").open(encoding="utf-8", newline="") as file:
        assert [row["class_name"] for row in csv.DictReader(file)] == list(names)


def test_confusion_has_room_for_the_names_of_many_classes(tmp_path: Path) -> None:
    sizes = {}
    for classes in (13, 64):
        names = tuple(f"class {number}" for number in range(classes))
        matrix = ConfusionMatrix(np.eye(classes, dtype=np.int64))
        draw_confusion(matrix, names, tmp_path / "confusion.png")
        with Image.open(tmp_path / "confusion.png") as picture:
            sizes[classes] = picture.size
    assert sizes[13] == (960, 840)
    # A name is 17 pixels high.
    assert sizes[64][1] > 64 * 17 * 1.5
