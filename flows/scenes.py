"""Draws synthetic street scenes in the Lyft layout: ``python -m flows.scenes --output DIR``.

They replace a download: RGB images and red-channel masks of the 13 classes of carla-0.8. The same
seed always gives the same files.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from runtime.atomic_files import replacing
from runtime.command_line import Parser, run_main
from runtime.errors import UserError
from runtime.storage import absolute, is_remote
from schemas.classes import UInt8Array, load_taxonomy

WIDTH, HEIGHT = 800, 600

_FOLDERS = ("CameraRGB", "CameraSeg")
_SEEDS = 1_000_003
"""Numbers of scenes between one seed's first scene and the next one's."""

Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]]


class _Canvas:
    """An image and its mask; each shape is drawn into both."""

    def __init__(self, random: np.random.Generator, width: int, height: int) -> None:
        self.random = random
        self.image = Image.new("RGB", (width, height))
        self.mask = Image.new("L", (width, height))
        self._draw = ImageDraw.Draw(self.image), ImageDraw.Draw(self.mask)
        self._ids = {label.name: label.id for label in load_taxonomy("carla-0.8").classes}

    def shade(self, colour: Colour, spread: int = 18) -> Colour:
        """A random colour near the given one."""
        shift = self.random.integers(-spread, spread + 1)
        red, green, blue = (int(np.clip(c + shift, 0, 255)) for c in colour)
        return red, green, blue

    def polygon(self, name: str, points: Points, colour: Colour) -> None:
        self._draw[0].polygon(points, colour)
        self._draw[1].polygon(points, self._ids[name])

    def box(
        self, name: str, left: float, top: float, right: float, bottom: float, colour: Colour
    ) -> None:
        self.polygon(name, [(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def ellipse(self, name: str, box: tuple[float, float, float, float], colour: Colour) -> None:
        self._draw[0].ellipse(box, colour)
        self._draw[1].ellipse(box, self._ids[name])


def draw_scene(
    seed: int, width: int = WIDTH, height: int = HEIGHT
) -> tuple[UInt8Array, UInt8Array]:
    """Draws one scene: a street towards a vanishing point, with objects beside it.

    Returns:
        RGB image and mask, uint8 (height, width, 3); the mask holds the class in its red channel.
    """
    random = np.random.default_rng(seed)
    canvas = _Canvas(random, width, height)
    horizon = height * random.uniform(0.42, 0.52)
    centre = width * random.uniform(0.4, 0.6)
    _sky(canvas, horizon)
    _houses(canvas, horizon)
    _street(canvas, horizon, centre)
    for depth in np.sort(random.uniform(0.12, 0.95, random.integers(7, 13))):
        _object(canvas, horizon, centre, float(depth))
    # Sensor noise and a light gradient keep colours from giving the classes away.
    pixels = np.asarray(canvas.image).astype(np.float32)
    light = np.linspace(random.uniform(0.8, 1.1), random.uniform(0.8, 1.1), width)
    grain = random.normal(0, 7, (height // 2, width // 2, 1)).repeat(2, 0).repeat(2, 1)
    noisy = pixels * light[None, :, None] + np.resize(grain, (height, width, 1))
    mask = np.zeros((height, width, 3), np.uint8)
    mask[..., 0] = np.asarray(canvas.mask)
    return np.clip(noisy, 0, 255).astype(np.uint8), mask


def write_scenes(
    output: str, count: int, seed: int = 0, width: int = WIDTH, height: int = HEIGHT
) -> str:
    """Draws scenes into ``<output>/CameraRGB`` and ``<output>/CameraSeg``; returns ``output``.

    Raises:
        UserError: the number or the seed is out of bounds, or the folder holds anything else.
    """
    if count < 1 or seed < 0:
        raise UserError(
            f"{count} scenes from seed {seed}: expected at least 1 scene and a seed of at least 0"
        )
    for folder in _FOLDERS:
        Path(output, folder).mkdir(parents=True, exist_ok=True)
    _check_others(output, count, draw_scene(seed * _SEEDS, width, height)[0])
    write = partial(_write_scene, output, seed, width, height)
    if count < 8:
        for index in range(count):
            write(index)
        return output
    with ProcessPoolExecutor() as pool:
        for done, _ in enumerate(pool.map(write, range(count), chunksize=4), 1):
            if done % 40 == 0:
                print(f"scenes: {done}/{count} drawn", file=sys.stderr, flush=True)
    return output


def main(arguments: Sequence[str]) -> str:
    """The command line; returns the output folder."""
    parser = Parser(prog="python -m flows.scenes", description=__doc__)
    parser.add_argument("--output", required=True, help="folder to draw into")
    parser.add_argument("--count", type=int, default=120, help="scenes (default: 120)")
    parser.add_argument("--seed", type=int, default=0, help="of the first scene (default: 0)")
    args = parser.parse_args(arguments)
    if is_remote(args.output):
        raise UserError(f"--output {args.output!r}: expected a folder of this machine")
    return write_scenes(absolute(args.output), args.count, args.seed)


def _check_others(output: str, count: int, first: UInt8Array) -> None:
    """Refuses a folder with other files than these scenes: an ingest would take them for pairs."""
    names = {_name(index) for index in range(count)}
    found = {path.name for folder in _FOLDERS for path in Path(output, folder).iterdir()}
    drawn = Path(output, _FOLDERS[0], _name(0))
    others = {name for name in found - names if not name.startswith(".")}
    if others or (drawn.exists() and not np.array_equal(np.asarray(Image.open(drawn)), first)):
        raise UserError(
            f"{output!r} holds other scenes or files; remove it, or name another folder"
        )


def _name(index: int) -> str:
    return f"000_{index:04d}.png"


def _write_scene(output: str, seed: int, width: int, height: int, index: int) -> None:
    image, mask = draw_scene(seed * _SEEDS + index, width, height)
    # An existing file has the same content; with its modification time kept, ingest reuses it.
    for folder, pixels in zip(_FOLDERS, (image, mask), strict=True):
        path = Path(output, folder, _name(index))
        if not path.exists():
            with replacing(path) as part:
                Image.fromarray(pixels).save(part, "PNG", compress_level=1)


def _sky(canvas: _Canvas, horizon: float) -> None:
    width = canvas.image.width
    top, bottom = canvas.shade((120, 160, 210)), canvas.shade((200, 210, 220))
    for y in range(int(horizon) + 1):
        share = y / horizon
        colour = tuple(int(a + (b - a) * share) for a, b in zip(top, bottom, strict=True))
        canvas.box("None", 0, y, width, y + 1, (colour[0], colour[1], colour[2]))


def _houses(canvas: _Canvas, horizon: float) -> None:
    random, width = canvas.random, canvas.image.width
    x = -20.0
    while x < width:
        across = random.uniform(60, 170)
        kind = random.choice(["Buildings", "Buildings", "Vegetation", "None"])
        top = horizon * random.uniform(0.1, 0.75)
        if kind == "Buildings":
            canvas.box(kind, x, top, x + across, horizon + 4, canvas.shade((150, 120, 100), 45))
            pane = canvas.shade((70, 80, 95))
            for row in np.arange(top + 12, horizon - 14, 28):
                for column in np.arange(x + 10, x + across - 16, 26):
                    canvas.box(kind, column, row, column + 12, row + 15, pane)
        elif kind == "Vegetation":
            for _ in range(6):
                r = random.uniform(20, 45)
                cx, cy = random.uniform(x, x + across), random.uniform(horizon - 60, horizon)
                canvas.ellipse(kind, (cx - r, cy - r, cx + r, cy + r), canvas.shade((70, 110, 50)))
        x += across
    for name, colour in (("Walls", (120, 115, 110)), ("Fences", (130, 100, 80))):
        if random.random() < 0.5:
            left, across = random.uniform(0, width * 0.8), random.uniform(80, 220)
            canvas.box(name, left, horizon - 22, left + across, horizon + 4, canvas.shade(colour))


def _street(canvas: _Canvas, horizon: float, centre: float) -> None:
    random, (width, height) = canvas.random, canvas.image.size
    lawn = canvas.shade((95, 120, 60))
    canvas.box("Vegetation", 0, horizon, width, height, lawn)
    for name, share, colour in (("Sidewalks", 1.45, (165, 160, 155)), ("Roads", 1.0, (90, 90, 92))):
        half = width * random.uniform(0.5, 0.6) * share
        bottom = width / 2
        canvas.polygon(
            name,
            [
                (centre - 14 * share, horizon),
                (centre + 14 * share, horizon),
                (bottom + half, height),
                (bottom - half, height),
            ],
            canvas.shade(colour),
        )
    paint = canvas.shade((215, 215, 190))
    for step in range(9):
        near, far = (step / 9) ** 2, ((step + 0.5) / 9) ** 2
        points = []
        for depth, side in ((near, -1), (near, 1), (far, 1), (far, -1)):
            y = horizon + (height - horizon) * depth
            x = centre + (width / 2 - centre) * depth
            points.append((x + side * (1 + 8 * depth), y))
        canvas.polygon("RoadLines", points, paint)


def _object(canvas: _Canvas, horizon: float, centre: float, depth: float) -> None:
    """Draws a random object at a depth between 0 (the horizon) and 1 (the camera)."""
    random, (width, height) = canvas.random, canvas.image.size
    ground = horizon + (height - horizon) * depth**1.5
    scale = height * 0.5 * depth
    middle = centre + (width / 2 - centre) * depth
    side = random.choice([-1, 1])
    kind = random.choice(["Vehicles", "Vehicles", "Poles", "Pedestrians", "TrafficSigns", "Other"])
    if kind == "Vehicles":
        x = middle + side * width * 0.24 * depth
        colour = canvas.shade(tuple(random.integers(20, 230, 3)), 0)
        canvas.box(kind, x - scale * 0.35, ground - scale * 0.32, x + scale * 0.35, ground, colour)
        roof = [
            (x - scale * 0.26, ground - scale * 0.32),
            (x - scale * 0.18, ground - scale * 0.55),
            (x + scale * 0.18, ground - scale * 0.55),
            (x + scale * 0.26, ground - scale * 0.32),
        ]
        canvas.polygon(kind, roof, canvas.shade((60, 70, 80)))
        for wheel in (-0.24, 0.24):
            cx, r = x + scale * wheel, scale * 0.08
            canvas.ellipse(kind, (cx - r, ground - r, cx + r, ground + r), (25, 25, 25))
        return
    x = middle + side * width * random.uniform(0.5, 0.75) * depth
    if kind == "Pedestrians":
        cloth = canvas.shade(tuple(random.integers(30, 220, 3)), 0)
        canvas.box(kind, x - scale * 0.08, ground - scale * 0.5, x + scale * 0.08, ground, cloth)
        r = scale * 0.08
        head = (x - r, ground - scale * 0.5 - 2 * r, x + r, ground - scale * 0.5)
        canvas.ellipse(kind, head, (205, 165, 140))
    elif kind == "Other":
        colour = canvas.shade((110, 70, 60))
        canvas.box(kind, x - scale * 0.1, ground - scale * 0.25, x + scale * 0.1, ground, colour)
    else:
        pole = max(2.0, scale * 0.035)
        canvas.box(
            "Poles", x - pole, ground - scale * 1.3, x + pole, ground, canvas.shade((120, 120, 118))
        )
        if kind == "TrafficSigns":
            r = scale * 0.13
            sign = (x - r, ground - scale * 1.3 - r, x + r, ground - scale * 1.3 + r)
            canvas.ellipse(kind, sign, canvas.shade((200, 60, 40)))


if __name__ == "__main__":
    sys.exit(run_main(main))
