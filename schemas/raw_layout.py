"""Layouts of raw pairs: which files are images, which are masks, and which belong together.

A layout is data: a YAML file in ``schemas/layouts``, the user's own, or two patterns on the command
line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from runtime.errors import UserError
from runtime.yaml_files import YamlFiles, explain
from schemas.config import SourceConfig
from schemas.layout import SPLIT_NAMES

_ID, _SPLIT = "{id}", "{split}"
_ANY_DEPTH = "**/"


def _checked(pattern: str) -> str:
    if pattern.count(_ID) != 1:
        raise ValueError(f"expected {_ID} once in a pattern such as 'rgb/{_ID}.png'")
    if pattern.count(_SPLIT) > 1:
        raise ValueError(f"expected {_SPLIT} once at most")
    if pattern.startswith("/") or _ANY_DEPTH in pattern[1:] or not Path(pattern).suffix:
        raise ValueError(
            f"expected a path below the source with a suffix; {_ANY_DEPTH} only at its beginning"
        )
    return pattern


Pattern = Annotated[str, AfterValidator(_checked)]


class PathMatch(NamedTuple):
    """What a layout takes a path for.

    Attributes:
        id: the pair's id, the path without what the pattern spells out.
        key: equal for the image and the masks of one pair only.
        is_mask: whether the path is a mask's.
        suffix_fits: whether the suffix is the pattern's; if not, only the folder is.
    """

    id: str
    key: str
    is_mask: bool
    suffix_fits: bool


class RawLayout(BaseModel):
    """Where images and masks lie below a source.

    Patterns are paths below the source: ``{id}`` stands for what an image and its mask share (it
    may hold slashes), ``**/`` at the beginning for any folders and ``{split}`` for the name of a
    split (train, val, test and longer forms), which belong to the id, ``*`` for anything within one
    name, ``{png,jpg}`` for alternatives. Upper and lower case do not differ.

    Attributes:
        images, masks: patterns of images and of masks.
        taxonomy: of masks that usually lie like this; a hint for messages.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    description: str = ""
    images: tuple[Pattern, ...] = Field(min_length=1)
    masks: tuple[Pattern, ...] = Field(min_length=1)
    taxonomy: str | None = None

    @cached_property
    def _compiled(self) -> tuple[_CompiledPattern, ...]:
        images = (_CompiledPattern.of(pattern, is_mask=False) for pattern in self.images)
        masks = (_CompiledPattern.of(pattern, is_mask=True) for pattern in self.masks)
        return (*images, *masks)

    def match(self, path: str) -> PathMatch | None:
        """What a path is; None if no pattern matches it.

        Of several patterns that match, the one that spells out most of the path decides, and a
        mask's before an image's: a mask must never be taken for an image.
        """
        best: tuple[tuple[bool, int, bool], PathMatch] | None = None
        for pattern in self._compiled:
            if not (match := pattern.regex.fullmatch(path)):
                continue
            groups = match.groupdict()
            above, name = groups["above"], groups["id"]
            split = f"{groups['split']}/" if "split" in groups else ""
            fits, is_mask = groups["fits"] is not None, pattern.is_mask
            found = PathMatch(above + split + name, f"{above}\0{split}{name}", is_mask, fits)
            rank = (fits, -len(name), is_mask)
            if best is None or rank > best[0]:
                best = rank, found
        return best[1] if best else None

    @property
    def places(self) -> str:
        """The patterns, for messages."""
        return f"images {' or '.join(self.images)} with masks {' or '.join(self.masks)}"


@dataclass(frozen=True, slots=True)
class _CompiledPattern:
    regex: re.Pattern[str]
    is_mask: bool

    @classmethod
    def of(cls, pattern: str, is_mask: bool) -> _CompiledPattern:
        rest = pattern.removeprefix(_ANY_DEPTH)
        stem, dot, suffix = rest.rpartition(".")
        *folders, name = stem.split("/")
        text = "(?P<above>)"
        if rest != pattern:
            text = "(?P<above>(?:.*/)?)"
            if folders and "{" not in folders[0]:
                # A folder in one of the same name counts as one: CameraRGB/CameraRGB.
                first = f"{_regex_of(folders.pop(0))}/"
                text = f"(?P<above>(?:(?:.*/)?(?!{first})[^/]+/)?)(?:{first})+"
        text += "".join(f"{_regex_of(folder)}/" for folder in folders) + _regex_of(name)
        # A name with another suffix, or without one, matches but does not fit.
        text += rf"(?:(?P<fits>{re.escape(dot)}{_regex_of(suffix)})|(?:\.[^./]*)?)"
        return cls(re.compile(text, re.IGNORECASE | re.DOTALL), is_mask)


def _regex_of(pattern: str) -> str:
    """A part of a pattern as a regular expression."""
    regex = ""
    for piece in re.split(r"(\*|\{[^{}]*\})", pattern):
        if piece == _ID:
            regex += "(?P<id>.+?)"
        elif piece == _SPLIT:
            regex += f"(?P<split>{'|'.join(SPLIT_NAMES)})"
        elif piece == "*":
            regex += "[^/]*"
        elif piece.startswith("{"):
            regex += f"(?:{'|'.join(map(re.escape, piece[1:-1].split(',')))})"
        else:
            regex += re.escape(piece)
    return regex


def builtin_layouts() -> list[str]:
    """Names of the built-in layouts."""
    return _LAYOUTS.names()


def load_layout(name_or_path: str) -> RawLayout:
    """Reads a built-in layout by name, or a YAML file.

    Raises:
        UserError: there is no such layout, or the file is invalid.
    """
    return _LAYOUTS.load(name_or_path)


def layout_of(config: SourceConfig) -> RawLayout:
    """The layout that a job's parameters name.

    Raises:
        UserError: there is none, or its patterns are invalid.
    """
    if not config.images:
        return load_layout(config.layout)
    try:
        return RawLayout(name="patterns", images=(config.images,), masks=(config.masks,))
    except ValidationError as error:
        raise UserError(f"--images and --masks: {explain(error)}") from error


_LAYOUTS = YamlFiles(
    "layout",
    RawLayout,
    Path(__file__).with_name("layouts"),
    "pass one of these names or a path, or patterns with --images and --masks",
)
