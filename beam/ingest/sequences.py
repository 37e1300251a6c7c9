"""Parses a frame's id: to which sequence it belongs, and when it was taken; opens no file.

The frames of all cameras on a drive belong to one sequence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np

from schemas.layout import SPLIT_NAMES

_WORDS = (
    r"(?:(?:front|rear|back|left|right|cent(?:er|re)|middle|side|top|bottom|narrow|wide|stereo|mono"
    r"|cam(?:era)?(?:[-_ ]?\d{1,2}(?!\d))?)[-_ ]?)+"
)
"""A camera in a folder's or file's name, of one word or several: CAM_FRONT_LEFT, camera2."""

_CAMERA = re.compile(rf"(?<![^\W_])(?:{_WORDS}|[lr])(?![^\W_])", re.IGNORECASE)

_CAMERA_FOLDER = re.compile(r"(?:image|img|view|sensor|lens)[-_ ]?\d{1,2}", re.IGNORECASE)
"""A camera in a folder's name alone, such as KITTI's image_02; in a file's name, 02 is a frame."""

_NUMBER = re.compile(
    r"(?<!\d)(?:"
    r"(?P<date>(?:19|20)\d\d[-_.]?\d\d[-_.]?\d\d[-_ T.]?\d\d[-_:.]?\d\d[-_:.]?\d\d)"
    r"(?:[-_.](?P<part>\d{1,6}))?"
    r"|(?P<seconds>\d{9,10})\.(?P<fraction>\d{1,9})"
    r"|\d+)(?!\d)"
)
"""A date and time of day, seconds with a fraction, or a plain number."""

_EPOCH = re.compile(r"1\d{9}(?:\d{3}){0,3}")
"""Time since 1970 in seconds, milliseconds, microseconds or nanoseconds, from 2001 to 2033."""

_EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)


class Frame(NamedTuple):
    """A frame's position in a drive.

    Attributes:
        sequence: equal for all frames of a drive, from any camera.
        camera: equal for the frames of one camera.
        instant: number that orders the frames; None for an id without a number.
    """

    sequence: str
    camera: str
    instant: int | None


def frame_of(sample_id: str) -> Frame:
    """Parses the id of a frame.

    The last number in the name orders the frames; the text around it identifies the sequence. Words
    for cameras do not count, as a folder (``left/000123``) or in a name (``000123_left``). If the
    number is a time, sibling folders are cameras of one sequence, since no two drives are at the
    same time: ``rgb_a/1690000000123`` and ``rgb_b/1690000000123``.
    """
    *folders, full_name = sample_id.split("/")
    name = _without_camera(full_name)
    number = _number_in(name)
    if number is None:
        name, number = full_name, _number_in(full_name)
    if number is None:
        return Frame(sample_id, "", None)
    before, after = name[: number.start()], name[number.end() :]
    kept = [folder for folder in map(_folder, folders) if folder]
    if _is_time(number) and folders and _folder(folders[-1]) == folders[-1]:
        # This folder may be a camera's.
        kept = kept[:-1]
    sequence = "/".join([*kept, before]) + after
    camera = sample_id.replace(number[0], "")
    return Frame(sequence, camera, _instant(number))


def folder_of(sample_id: str) -> str:
    """The folder of an id, without words for cameras and splits."""
    return "/".join(folder for folder in map(_folder, sample_id.split("/")[:-1]) if folder)


def step_of(frames: Iterable[tuple[str, int]]) -> float:
    """Median distance between consecutive frames of a camera; 1 if there are no two frames.

    Args:
        frames: camera and instant of each.
    """
    instants: dict[str, list[int]] = {}
    for camera, instant in frames:
        instants.setdefault(camera, []).append(instant)
    # As Python's integers: instants may exceed the precision of float64, and int64.
    gaps = [np.diff(np.unique(np.array(times, object))) for times in instants.values()]
    all_gaps = np.concatenate([np.empty(0), *gaps]).astype(float)
    return float(np.median(all_gaps)) if len(all_gaps) else 1.0


def _without_camera(name: str) -> str:
    stripped = _CAMERA.sub("", name)
    return stripped.strip("-_. ") if stripped != name else name


def _folder(name: str) -> str:
    """A folder's name without words for cameras; empty if it names a camera or a split."""
    if name.lower() in SPLIT_NAMES or _CAMERA_FOLDER.fullmatch(name):
        return ""
    return _without_camera(name)


def _number_in(name: str) -> re.Match[str] | None:
    """The last number without a letter beside it, or else the last number."""
    numbers = [one for one in _NUMBER.finditer(name) if one["date"] is None or _date(one)]
    words = [number for number in numbers if _is_word(name, number)]
    return next(reversed(words or numbers), None)


def _is_word(name: str, number: re.Match[str]) -> bool:
    neighbours = name[: number.start()][-1:] + name[number.end() :][:1]
    return not any(character.isalnum() for character in neighbours)


def _is_time(number: re.Match[str]) -> bool:
    if number["date"] or number["seconds"]:
        return True
    return _EPOCH.fullmatch(number[0]) is not None


def _instant(number: re.Match[str]) -> int:
    date = _date(number)
    if date:
        part = (number["part"] or "").ljust(6, "0")
        return (date - _EPOCH_START) // timedelta(microseconds=1) + int(part)
    if number["seconds"]:
        return int(number["seconds"] + number["fraction"].ljust(9, "0"))
    return int(number[0])


def _date(number: re.Match[str]) -> datetime | None:
    digits = re.sub(r"\D", "", number["date"] or "")
    try:
        return datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=UTC) if digits else None
    except ValueError:
        return None
