"""The data card of a dataset: its figures in ``card.md``, charts and samples in ``card.png``."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from beam.ingest.doubt_report import MEANING
from beam.ingest.records import decode_example
from images.panels import MARGIN, fitted, overlay
from schemas.classes import Taxonomy
from schemas.example import Example, read_examples
from schemas.layout import SOURCES, SPLITS
from schemas.manifest import Manifest

DOUBTFUL_PICTURE = "doubtful.png"
LEAKS_PICTURE = "leaks.png"

_WIDTH = 1000
_SAMPLES = {"train": 8, "validation": 4, "test": 4}
_COLUMNS = 4
_BARS = 140
"""Left end of the bars of the class shares, in pixels."""

_INK, _FAINT, _PAPER = (30, 30, 30), (120, 120, 120), (255, 255, 255)
_SPLIT_SHADES = {"train": 1.0, "validation": 0.65, "test": 0.35}


def write_card(folder: Path, manifest: Manifest, shards: str) -> None:
    """Writes both files to ``folder``; ``shards`` is the folder of the dataset's shards."""
    (folder / "card.md").write_text(card_text(manifest), encoding="utf-8")
    card_picture(shards, manifest).save(folder / "card.png", compress_level=3)


def card_text(manifest: Manifest) -> str:
    """Markdown: where the data come from, split sizes, class shares and weights, rejects."""
    config = manifest.config
    size = f"{config.width}x{config.height}" if config.height else "the source's size"
    lines = [
        f"# {manifest.name} {manifest.fingerprint[:12]}",
        "",
        f"{manifest.records:,} pairs from `{manifest.source}`, split by {config.split_by}.",
        f"Size {size} ({config.resize}), taxonomy {manifest.taxonomy.name}.",
        "",
        "![Class shares, splits, rejects and samples](card.png)",
        "",
        "| split | records | groups | MiB |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {name} | {info.records:,} | {info.groups:,} | {info.bytes / 2**20:.1f} |"
            for name, info in manifest.splits.items()
        ),
        "",
        "| class | train | validation | test | weight |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    shares = _shares(manifest)
    for label in manifest.taxonomy.classes:
        by_split = " | ".join(f"{shares[split][label.id]:.3%}" for split in SPLITS)
        weight = manifest.class_weights[label.name]
        lines.append(f"| {label.id} {label.name} | {by_split} | {weight:.3g} |")
    mean = ", ".join(f"{value:.4f}" for value in manifest.channel_mean)
    deviation = ", ".join(f"{value:.4f}" for value in manifest.channel_std)
    lines += ["", f"Channel mean {mean}; standard deviation {deviation} (train, 0 to 1)."]
    if near := manifest.near_duplicates:
        lines += [
            "",
            f"Pairs of near-duplicates across splits: {near.pairs_across_splits:,}, among",
            f"{near.images_across_splits:,} images (difference hashes that differ in at most",
            f"{near.max_distance} of 64 bits).",
        ]
        if near.pairs_across_splits:
            lines += ["", f"![Some of them, with their masks]({LEAKS_PICTURE})"]
    lines += ["", "| reject | inputs |", "| --- | ---: |"]
    rejects = manifest.rejects or {"none": 0}
    lines += [f"| {code} | {count:,} |" for code, count in rejects.items()]
    if manifest.doubts:
        lines += [
            "",
            f"{manifest.doubtful:,} doubtful pairs (column `doubts` of {SOURCES}):",
            "",
            "| doubt | pairs | meaning |",
            "| --- | ---: | --- |",
            *(
                f"| {code} | {count:,} | {MEANING[code]} |"
                for code, count in manifest.doubts.items()
            ),
            "",
            f"![Some pairs with each doubt]({DOUBTFUL_PICTURE})",
        ]
    if manifest.warnings:
        lines += ["", *(f"- Warning: {warning}." for warning in manifest.warnings)]
    return "\n".join(lines) + "\n"


def card_picture(folder: str, manifest: Manifest) -> Image.Image:
    """Class shares as bars, split sizes, rejects, and a contact sheet with overlays."""
    tiles = [
        (f"{split}  {example.id}", _tile(example, manifest.taxonomy))
        for split in SPLITS
        for example in _first_records(folder, manifest, split)
    ]
    tile_height = max((tile.height for _, tile in tiles), default=0) + 22
    bars_height = 34 * len(manifest.taxonomy) + 40
    top = 44 + max(bars_height, 44 * (len(manifest.rejects) + 6))
    rows = -(-len(tiles) // _COLUMNS)
    sheet = Image.new("RGB", (_WIDTH, top + rows * tile_height + MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), f"{manifest.name} {manifest.fingerprint[:12]}", _INK, _font(20))
    _draw_class_shares(draw, manifest, 44)
    _draw_sizes(draw, manifest, 44)
    step = (_WIDTH - MARGIN) // _COLUMNS
    for position, (caption, tile) in enumerate(tiles):
        row, column = divmod(position, _COLUMNS)
        x, y = MARGIN + column * step, top + row * tile_height
        draw.text((x, y), fitted(caption, _font(12), step - MARGIN), _FAINT, _font(12))
        sheet.paste(tile, (x, y + 18))
    return sheet


def _draw_class_shares(draw: ImageDraw.ImageDraw, manifest: Manifest, top: int) -> None:
    shares = _shares(manifest)
    longest = max((max(values) for values in shares.values()), default=0) or 1
    draw.text((MARGIN, top), "class shares: train, validation, test", _FAINT, _font(13))
    for label in manifest.taxonomy.classes:
        y = top + 24 + 34 * label.id
        name = fitted(label.name, _font(14), _BARS - 2 * MARGIN)
        draw.text((MARGIN, y + 6), name, _INK, _font(14))
        for row, split in enumerate(SPLITS):
            share = shares[split][label.id]
            shade = _SPLIT_SHADES[split]
            colour = tuple(round(255 - (255 - c) * shade) for c in label.colour)
            right = _BARS + 380 * share / longest
            draw.rectangle((_BARS, y + 10 * row, right, y + 10 * row + 8), colour, (160, 160, 160))
            draw.text((right + 6, y + 10 * row - 2), f"{share:.2%}", _FAINT, _font(10))


def _draw_sizes(draw: ImageDraw.ImageDraw, manifest: Manifest, top: int) -> None:
    left, width = 640, 240
    draw.text((left, top), "records by split", _FAINT, _font(13))
    y = top + 24
    for split, info in manifest.splits.items():
        right = left + 90 + (width - 90) * info.records / max(1, manifest.records)
        draw.text((left, y), split, _INK, _font(14))
        draw.rectangle((left + 90, y + 2, right, y + 16), (90, 120, 170))
        draw.text((right + 6, y), f"{info.records:,}", _INK, _font(13))
        y += 26
    y += 20
    draw.text((left, y), "rejects", _FAINT, _font(13))
    for code, count in manifest.rejects.items() or [("none", 0)]:
        y += 24
        draw.text((left, y), code, _INK, _font(14))
        draw.text((left + 160, y), f"{count:,}", _INK, _font(14))


def _first_records(folder: str, manifest: Manifest, split: str) -> Iterator[Example]:
    """The first records of a split: a fair sample, since a hash orders the records."""
    shards = (read_examples(folder, name) for name in manifest.shard_names(split))
    return islice(chain.from_iterable(shards), _SAMPLES[split])


def _tile(example: Example, taxonomy: Taxonomy) -> Image.Image:
    image, mask = decode_example(example)
    tile_width = (_WIDTH - MARGIN) // _COLUMNS - MARGIN
    height, width = mask.shape
    # Extreme shapes: at most twice as high as a tile is wide, at least one pixel each way.
    scale = min(tile_width / width, 2 * tile_width / height)
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    blended = Image.fromarray(overlay(image, mask, taxonomy))
    return blended.resize(size, Image.Resampling.BILINEAR)


def _shares(manifest: Manifest) -> dict[str, list[float]]:
    """Share of each class in the labelled pixels of each split, by class id."""
    pixels = {split: list(info.class_pixels.values()) for split, info in manifest.splits.items()}
    return {
        split: [count / max(1, sum(counts)) for count in counts] for split, counts in pixels.items()
    }


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
