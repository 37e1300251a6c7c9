"""Panels: what a name that is too long leaves readable."""

import numpy as np
from PIL import ImageFont

from images.panels import MARGIN, PanelRow, fitted, panel
from schemas.classes import ClassLabel, Taxonomy


def test_text_is_cut_to_its_room() -> None:
    font = ImageFont.load_default(14)
    assert fitted("Roads", font, 100) == "Roads"
    cut = fitted("Roads and markings", font, 100)
    assert cut.endswith("…")
    assert "Roads and markings".startswith(cut[:-1])
    assert 60 < font.getlength(cut) <= 100


def test_a_long_name_leaves_the_next_class_of_a_legend() -> None:
    def legend(name: str) -> np.ndarray:
        labels = (
            ClassLabel(id=0, name=name, colour=(0, 0, 0)),
            ClassLabel(id=1, name="Roads", colour=(128, 64, 128)),
        )
        row = PanelRow("", np.zeros((1, 2, 3), np.uint8), [np.array([[0, 1]], np.uint8)])
        sheet = panel([row], ("input", "truth"), Taxonomy(name="long", classes=labels))
        return np.asarray(sheet)[-44:, MARGIN + 170 :]

    assert np.array_equal(legend("Emergency vehicles of all kinds"), legend("Cars"))
