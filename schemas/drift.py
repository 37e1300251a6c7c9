"""Drift: how far a run's predictions are from those on the model's validation split.

The distance between two distributions of pixels over classes is their total variation: half of the
sum of the absolute differences of the shares, from 0 (equal) to 1 (no class in common). It is the
share of pixels that would have to change class (Levin, Peres and Wilmer, Markov Chains and Mixing
Times, section 4.1). Unlike the population stability index, it is defined where a class is missing.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Profile(BaseModel):
    """What was predicted for a set of images.

    Attributes:
        images: their number.
        class_pixels: predicted pixels by class name.
        mean_confidence: mean over all pixels of the probability of the predicted class; None
            without pixels.
    """

    model_config = ConfigDict(frozen=True)

    images: int = Field(ge=0)
    class_pixels: dict[str, int]
    mean_confidence: float | None

    def share(self, name: str) -> float | None:
        """Share of the pixels that were predicted as a class; None without pixels."""
        pixels = sum(self.class_pixels.values())
        return self.class_pixels.get(name, 0) / pixels if pixels else None


class Drift(BaseModel):
    """Predictions of a run beside those on the model's validation split.

    Attributes:
        model: URI of the model.
        partition: folder of the run below each table.
        now: predictions for all images of the partition.
        validation: None for a model that was registered without one.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    partition: str
    now: Profile
    validation: Profile | None

    def differences(self) -> list[tuple[str, float, float]]:
        """Name, share now and share in validation of each class, in the order of the classes.

        Empty if one of them is unknown.
        """
        if self.validation is None:
            return []
        names = dict.fromkeys([*self.validation.class_pixels, *self.now.class_pixels])
        shares = [(name, self.now.share(name), self.validation.share(name)) for name in names]
        return [(name, a, b) for name, a, b in shares if a is not None and b is not None]

    @property
    def distance(self) -> float | None:
        """Total variation distance of the class shares, 0 to 1; None if one of them is unknown."""
        differences = self.differences()
        return sum(abs(a - b) for _, a, b in differences) / 2 if differences else None
