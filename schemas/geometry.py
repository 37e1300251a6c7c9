"""Sizes that a network takes, and how images of other sizes are mirrored and cropped to fit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field


class Geometry(BaseModel):
    """A network takes sizes that leave ``remainder`` when divided by ``multiple``.

    Its logits are smaller than the input by ``margin`` pixels on each side.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    multiple: int = Field(ge=1)
    remainder: int = Field(ge=0)
    margin: int = Field(ge=0)

    def input_size(self, size: int) -> int:
        """The smallest size the network takes that yields logits for ``size`` pixels."""
        least = size + 2 * self.margin
        return least + (self.remainder - least) % self.multiple

    def output_size(self, size: int) -> int:
        """Size of the logits for an image of ``size`` pixels, before they are cropped to it."""
        return self.input_size(size) - 2 * self.margin

    def mirror(self, size: int) -> npt.NDArray[np.int64]:
        """Index of the image row (or column) to read at each position of the input.

        The image begins at the margin and is mirrored beyond its borders, as in the overlap-tile
        strategy of the 2015 paper. The first ``size`` logits belong to the image.
        """
        after = self.input_size(size) - size - self.margin
        return np.pad(np.arange(size), (self.margin, after), mode="symmetric")


PADDED = Geometry(multiple=16, remainder=0, margin=0)
"""Four poolings, same-padded convolutions."""

UNPADDED = Geometry(multiple=16, remainder=12, margin=92)
"""Four poolings, unpadded convolutions: 572 in, 388 out."""

ON_ENCODER = Geometry(multiple=32, remainder=0, margin=0)
"""An encoder that halves its features five times."""
