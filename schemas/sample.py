"""One image/mask pair and the invariants that every stage relies on."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.classes import UInt8Array


@dataclass(frozen=True, slots=True)
class Sample:
    """A checked pair.

    Attributes:
        id: path below the source root without suffix and camera folder.
        image: RGB, uint8 (height, width, 3).
        mask: class ids, uint8 (height, width), 255 for void.
    """

    id: str
    image: UInt8Array
    mask: UInt8Array

    def __post_init__(self) -> None:
        height, width = self.mask.shape
        if self.image.shape != (height, width, 3):
            raise ValueError(
                f"{self.id}: image {self.image.shape} does not lie over mask {self.mask.shape}"
            )
        if self.image.dtype != "uint8" or self.mask.dtype != "uint8":
            raise ValueError(
                f"{self.id}: expected uint8, found image {self.image.dtype}, mask {self.mask.dtype}"
            )
