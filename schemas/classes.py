"""Classes of a segmentation mask: id, name, colour, and the taxonomy that holds them.

A taxonomy is data: a YAML file beside this module, or the user's own. It says which values a raw
mask may hold, what each becomes in the dataset, and what is left out of the loss (void).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from runtime.errors import UserError
from runtime.yaml_files import YamlFiles

UInt8Array = npt.NDArray[np.uint8]

VOID = 255
"""Pixel value of a dataset mask that belongs to no class: left out of loss and metrics."""

_INVALID = 256

Channel = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Channel, Channel, Channel]


class Expectation(BaseModel):
    """What is usual for a class over a whole dataset.

    Attributes:
        share: fraction of all pixels that are not void.
        upper: fraction of the class's pixels that lie in the upper half of their image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = Field(ge=0, le=1)
    upper: float = Field(ge=0, le=1)


class ClassLabel(BaseModel):
    """One class: its id in dataset masks and logits, its name, its RGB colour (0 to 255)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: int = Field(ge=0, lt=VOID)
    name: str = Field(min_length=1)
    colour: Colour
    usually: Literal["upper", "lower"] | None = None
    """The half of an image in which most of this class lies; checked against the data."""
    expected: Expectation | None = None
    """Reveals masks in another class numbering of the same simulator."""


class ColourMeaning(BaseModel):
    """A colour of colour-coded masks, and the class id that it means, or 255 for void."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    colour: Colour
    to: int = Field(ge=0, le=VOID)


class Region(BaseModel):
    """A class that becomes void inside a rectangle, e.g. vehicle pixels of the car's own hood.

    ``top``, ``left``, ``bottom`` and ``right`` are fractions of height and width.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    class_id: int = Field(ge=0, lt=VOID)
    top: float = Field(0.0, ge=0, le=1)
    left: float = Field(0.0, ge=0, le=1)
    bottom: float = Field(1.0, ge=0, le=1)
    right: float = Field(1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> Region:
        if self.top >= self.bottom or self.left >= self.right:
            raise ValueError("expected top above bottom, and left before right")
        return self


class Taxonomy(BaseModel):
    """A named, versioned set of classes and the mapping from raw mask values to them.

    Attributes:
        classes: ids 0 to n-1 in order; the id is the index of the logit.
        remap: raw mask value to class id, or to 255 for void. A raw value that is not a key here
            means the class of that id; if there is none, it is an error in the mask.
        only_remapped: whether a raw value that is not a key of ``remap`` is always an error: for
            masks whose values are not class ids.
        void_regions: rectangles in which one class becomes void.
        colours: further colours of colour-coded masks. They take precedence over the classes' own,
            in which pictures are drawn.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    description: str = ""
    classes: tuple[ClassLabel, ...] = Field(min_length=2, max_length=VOID)
    remap: dict[int, int] = {}
    only_remapped: bool = False
    void_regions: tuple[Region, ...] = ()
    colours: tuple[ColourMeaning, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Taxonomy:
        ids = [label.id for label in self.classes]
        if ids != list(range(len(ids))):
            raise ValueError(f"class ids must be 0 to {len(ids) - 1} in order, found {ids}")
        names = [label.name for label in self.classes]
        if len(set(names)) != len(names):
            raise ValueError("class names must differ from each other")
        for raw, target in self.remap.items():
            if not 0 <= raw <= VOID or not (target == VOID or 0 <= target < len(ids)):
                raise ValueError(f"remap {raw}: {target} is not the id of a class")
        for region in self.void_regions:
            if region.class_id >= len(ids):
                raise ValueError(f"void region of class {region.class_id}, which does not exist")
        for coded in self.colours:
            if not (coded.to == VOID or coded.to < len(ids)):
                raise ValueError(f"colour {coded.colour}: {coded.to} is not the id of a class")
        if self.only_remapped and not self.remap:
            raise ValueError("only_remapped: a remap that lists the values is missing")
        return self

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names by id."""
        return tuple(label.name for label in self.classes)

    @cached_property
    def sha256(self) -> str:
        """Hash of the whole taxonomy."""
        return _sha256(self.model_dump(mode="json"))

    @cached_property
    def mapping_sha256(self) -> str:
        """Hash of what decides a pixel's class; colours and the description do not count.

        Models and datasets with the same mapping are compatible.
        """
        mapping = self.model_dump(mode="json", include={"remap", "void_regions"})
        # 255 is void in every dataset, whether a taxonomy lists it or not.
        mapping["remap"] = {
            raw: target for raw, target in self.remap.items() if (raw, target) != (VOID, VOID)
        }
        if self.only_remapped:
            mapping["only_remapped"] = True
        return _sha256({**mapping, "names": self.names})

    @cached_property
    def palette(self) -> bytes:
        """768 bytes for a palette PNG: the class colours, black for unused ids, white for void."""
        flat = [channel for label in self.classes for channel in label.colour]
        flat += [0] * (3 * VOID - len(flat)) + [255, 255, 255]
        return bytes(flat)

    @cached_property
    def _id_by_raw_value(self) -> npt.NDArray[np.uint16]:
        table = np.full(256, _INVALID, np.uint16)
        if not self.only_remapped:
            table[: len(self)] = np.arange(len(self))
        for raw, target in self.remap.items():
            table[raw] = target
        return table

    @cached_property
    def is_identity(self) -> bool:
        """Whether raw mask values are already class ids and nothing becomes void."""
        return not self.remap and not self.void_regions

    def unknown_values(self, raw: UInt8Array) -> list[int]:
        """Values in a raw mask that this taxonomy does not define, in ascending order."""
        if self.is_identity and raw.max(initial=0) < len(self):
            return []
        present = np.flatnonzero(np.bincount(raw.ravel(), minlength=256))
        return [int(value) for value in present if self._id_by_raw_value[value] == _INVALID]

    def class_ids(self, raw: UInt8Array) -> UInt8Array:
        """Class ids of a raw mask, uint8 (height, width), void as 255. Values must be known."""
        if self.is_identity:
            return raw
        return self._with_void_regions(self._id_by_raw_value[raw].astype(np.uint8))

    def ids_of_colours(self, rgb: UInt8Array) -> tuple[UInt8Array, list[Colour]]:
        """Class ids of a colour-coded mask, by exact colour.

        Args:
            rgb: uint8 (height, width, 3).

        Returns:
            Class ids, uint8 (height, width), void as 255; and the mask's colours that are not in
            this taxonomy, in ascending order. Their pixels are 255, too.

        Raises:
            UserError: one colour stands for two classes.
        """
        colours, class_ids = zip(*self.id_by_colour.items(), strict=True)
        packed = (rgb[..., 0].astype(np.uint32) << 16) | (rgb[..., 1].astype(np.uint32) << 8)
        packed |= rgb[..., 2]
        index = _colour_index(colours)[packed]
        ids = np.array([VOID, *class_ids], np.uint8)[index]
        unknown: list[Colour] = []
        if not index.all():
            missing = map(int, np.unique(packed[index == 0]))
            unknown = [(colour >> 16, colour >> 8 & 255, colour & 255) for colour in missing]
        return self._with_void_regions(ids), unknown

    @cached_property
    def id_by_colour(self) -> dict[Colour, int]:
        """Class id, or 255 for void, of each colour of a colour-coded mask.

        Raises:
            UserError: one colour stands for two classes.
        """
        ids: dict[Colour, int] = {}
        for colour, target in self._colours():
            earlier = ids.setdefault(colour, target)
            if earlier != target:
                raise UserError(
                    f"taxonomy {self.name}: colour {colour} stands for both "
                    f"{self._name_of(earlier)} and {self._name_of(target)}, so masks of colours "
                    "cannot be read; give them different colours, or say under `colours` which "
                    "of them it means"
                )
        return ids

    def _colours(self) -> list[tuple[Colour, int]]:
        further = [(coded.colour, coded.to) for coded in self.colours]
        known = {colour for colour, _ in further}
        return further + [(one.colour, one.id) for one in self.classes if one.colour not in known]

    def _name_of(self, target: int) -> str:
        return "void" if target == VOID else f"class {target} {self.names[target]}"

    def _with_void_regions(self, ids: UInt8Array) -> UInt8Array:
        height, width = ids.shape
        for region in self.void_regions:
            window = ids[
                round(region.top * height) : round(region.bottom * height),
                round(region.left * width) : round(region.right * width),
            ]
            window[window == region.class_id] = VOID
        return ids

    def one_vs_rest(self, names: Sequence[str]) -> tuple[Taxonomy, UInt8Array]:
        """A binary taxonomy: the named classes merged into class 1 against the rest, class 0.

        A void region is kept if its class is the only one named.

        Returns:
            The taxonomy, which maps raw masks; and the table from this taxonomy's class ids to the
            new ones, uint8 (256,), in which void stays void.

        Raises:
            UserError: a name is not in this taxonomy, or the names are none or all of its classes.
        """
        unknown = [name for name in names if name not in self.names]
        if unknown or not 0 < len(set(names)) < len(self):
            raise UserError(
                f"target {','.join(names)!r}: expected some, not all, of the classes of taxonomy "
                f"{self.name}: {', '.join(self.names)}"
            )
        chosen = [label for label in self.classes if label.name in names]
        table = np.full(256, VOID, np.uint8)
        table[: len(self)] = 0
        table[[label.id for label in chosen]] = 1
        together = "+".join(label.name for label in chosen)
        raw_values = np.flatnonzero(self._id_by_raw_value != _INVALID)
        binary = Taxonomy(
            name=f"{self.name}-{together}",
            description=f"{together} against the rest of {self.name}.",
            classes=(
                ClassLabel(id=0, name="Rest", colour=(0, 0, 0)),
                ClassLabel(id=1, name=together, colour=chosen[0].colour),
            ),
            remap={int(raw): int(table[self._id_by_raw_value[raw]]) for raw in raw_values},
            only_remapped=self.only_remapped,
            colours=tuple(
                ColourMeaning(colour=colour, to=int(table[target]))
                for colour, target in self._colours()
            ),
            void_regions=tuple(
                region.model_copy(update={"class_id": 1})
                for region in self.void_regions
                if [region.class_id] == [label.id for label in chosen]
            ),
        )
        return binary, table


@lru_cache(maxsize=4)
def _colour_index(colours: tuple[Colour, ...]) -> npt.NDArray[np.uint16]:
    """Index in ``colours``, from 1, of each 24-bit colour; 0 for all others; (2**24,).

    The kernel gives it memory only at the colours that masks have.
    """
    index = np.zeros(1 << 24, np.uint16)
    for number, (red, green, blue) in enumerate(colours, 1):
        index[red << 16 | green << 8 | blue] = number
    return index


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def builtin_taxonomies() -> list[str]:
    """Names of the built-in taxonomies."""
    return _TAXONOMIES.names()


def load_taxonomy(name_or_path: str) -> Taxonomy:
    """Reads a built-in taxonomy by name, or a YAML file.

    Raises:
        UserError: there is no such taxonomy, or the file is invalid.
    """
    return _TAXONOMIES.load(name_or_path)


def with_void(taxonomy: Taxonomy, values: str) -> Taxonomy:
    """The taxonomy with these raw values (separated by commas) as void; the same for none."""
    if not values:
        return taxonomy
    remap = {**taxonomy.remap, **dict.fromkeys(map(int, values.split(",")), VOID)}
    return Taxonomy.model_validate({**taxonomy.model_dump(), "remap": remap})


_TAXONOMIES = YamlFiles(
    "taxonomy",
    Taxonomy,
    Path(__file__).with_name("taxonomies"),
    "pass one of these names or a path",
)
