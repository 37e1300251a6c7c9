"""Writes masks over selected images as PNGs: ``python -m analysis.overlay --ids … --output …``."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from analysis.pictures import Scene, load_scenes, safe_path
from analysis.tables import add_run_options, connect, reading, select_run
from runtime.command_line import Parser, run_main
from runtime.errors import UserError

_GAP = 8
_TITLE_HEIGHT = 22
_MIN_TILE_WIDTH = 96
"""In pixels, so that a tile has room for its title."""


def main(arguments: Sequence[str]) -> str:
    """The command line; returns the output folder."""
    parser = Parser(
        prog="python -m analysis.overlay",
        description="Writes the mask over the image, as one PNG for each image id.",
    )
    add_run_options(parser)
    parser.add_argument("--ids", nargs="+", required=True, help="image ids of the table masks")
    parser.add_argument("--output", required=True, help="folder of the PNGs")
    parser.add_argument("--dataset", help="the dataset that was predicted, where it has moved")
    parser.add_argument(
        "--strip", action="store_true", help="side by side: input, truth, prediction, errors"
    )
    args = parser.parse_args(arguments)
    with reading(args.predictions):
        connection = connect(args.predictions)
        scenes = load_scenes(connection, select_run(connection, args), args.ids, args.dataset)
    files = {}
    for scene in scenes:
        out = io.BytesIO()
        (strip(scene) if args.strip else Image.fromarray(scene.prediction())).save(out, "PNG")
        files[Path(args.output, f"{safe_path(scene.image_id)}.png")] = out.getvalue()
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    except OSError as error:
        raise UserError(f"output {args.output!r} is not writable: {error.strerror}") from error
    return str(args.output)


def strip(scene: Scene) -> Image.Image:
    """Those of input, truth, prediction and errors that are known, side by side."""
    tiles = {
        "input": scene.image,
        "truth": scene.coloured_truth(),
        "prediction": scene.prediction(),
        "errors": scene.errors(),
    }
    known = {name: pixels for name, pixels in tiles.items() if pixels is not None}
    height, width = scene.mask.shape
    # Small masks are enlarged by an integer factor, so that each pixel stays a square.
    scale = -(-_MIN_TILE_WIDTH // width)
    width, height = width * scale, height * scale
    sheet = Image.new("RGB", (len(known) * (width + _GAP) - _GAP, height + _TITLE_HEIGHT), "white")
    draw = ImageDraw.Draw(sheet)
    for position, (name, pixels) in enumerate(known.items()):
        x = position * (width + _GAP)
        draw.text((x, 3), name, (30, 30, 30), ImageFont.load_default(13))
        tile = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(tile, (x, _TITLE_HEIGHT))
    return sheet


if __name__ == "__main__":
    sys.exit(run_main(main))
