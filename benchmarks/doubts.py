"""Error rates of the checks of edges and channels: ``make bench BENCH=doubts RAW=folder``.

Scores the pairs as ingest does, at the records' size: as they are, with the masks of other frames,
and with masks that are moved or drawn less precisely. Then it samples datasets from them and counts
wrong verdicts. docs/ingest.md has the figures.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby
from pathlib import Path

import numpy as np

from beam.ingest.doubts import (
    EDGES,
    DoubtTotal,
    channels_swapped,
    doubts_of,
    edges_disagree,
    score_pair,
)
from beam.shared.source import RawSource
from images.png import decode_image
from schemas.classes import load_taxonomy
from schemas.raw_layout import load_layout

LIMIT = 1 << 26
SIZES = 12, 20, 40, 200


def moved(pixels):
    """Masks moved by some pixels to the right and down."""
    return lambda masks, at: np.roll(masks[at], (pixels, pixels), axis=(0, 1))


def imprecise(deviation):
    """Masks whose edges err smoothly, by a standard deviation of some pixels."""

    def change(masks, at):
        mask = masks[at]
        draw = np.random.default_rng(at)
        height, width = mask.shape
        rows, columns = np.indices(mask.shape)
        for target, size in ((rows, height), (columns, width)):
            coarse = draw.normal(0, deviation, (height // 24 + 2, width // 24 + 2))
            error = coarse.repeat(24, axis=0).repeat(24, axis=1)[:height, :width]
            np.clip(target + np.rint(error).astype(int), 0, size - 1, out=target)
        return mask[rows, columns]

    return change


CHANGES = {
    "right": lambda masks, at: masks[at],
    "of the next frame": lambda masks, at: masks[(at + 1) % len(masks)],
    "of ten frames on": lambda masks, at: masks[(at + 10) % len(masks)],
    "mirrored": lambda masks, at: masks[at][:, ::-1],
    "moved by 2 pixels": moved(2),
    "moved by 4 pixels": moved(4),
    "drawn with a deviation of 1 pixel": imprecise(1),
    "drawn with a deviation of 2 pixels": imprecise(2),
    "drawn with a deviation of 3 pixels": imprecise(3),
}


def drives(raw):
    """Yields each folder of images with the paths of its pairs, in order."""
    files_by_id = {}
    for _, entry in RawSource(str(raw), load_layout("lyft")).entries():
        files_by_id.setdefault(entry.id, {})[entry.is_mask] = raw / entry.file.path
    pairs = sorted((id_, files) for id_, files in files_by_id.items() if len(files) == 2)
    for name, group in groupby(pairs, lambda pair: Path(pair[0]).parent):
        yield str(name), [(files[False], files[True]) for _, files in group]


def score(image, mask):
    """The score of a pair as a record holds it by default."""
    return score_pair(*(np.ascontiguousarray(pixels) for pixels in (image, mask)))


def score_drive(pairs):
    """The scores of a drive's pairs after each change, and with swapped channels."""
    images = [decode_image(image.read_bytes(), LIMIT) for image, _ in pairs]
    taxonomy = load_taxonomy("carla-0.8")
    raw = [decode_image(mask.read_bytes(), LIMIT)[..., 0] for _, mask in pairs]
    masks = [taxonomy.class_ids(np.ascontiguousarray(mask)) for mask in raw]
    scores = {
        name: [score(image, change(masks, at)) for at, image in enumerate(images)]
        for name, change in CHANGES.items()
    }
    scores["swapped channels"] = [
        score(image[..., ::-1], mask) for image, mask in zip(images, masks, strict=True)
    ]
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=2_000)
    args = parser.parse_args()
    pairs = dict(drives(args.raw))
    with ProcessPoolExecutor(2) as pool:
        scored = dict(zip(pairs, pool.map(score_drive, pairs.values()), strict=True))
    print("| masks | drive | cells that agree | least | pairs doubted |")
    print("| --- | --- | ---: | ---: | ---: |")
    for name in CHANGES:
        for drive, scores in scored.items():
            of_pairs = scores[name]
            doubted = sum(EDGES in doubts_of(score) for score in of_pairs)
            least = min(score.agreement for score in of_pairs)
            share = DoubtTotal.of(of_pairs).agreement
            doubted_of = f"{doubted} of {len(of_pairs)}"
            print(f"| {name} | {drive} | {share:.2f} | {least:.2f} | {doubted_of} |")
    random = np.random.default_rng(0)
    print()
    print("| verdict | drive | " + " | ".join(f"{size} pairs" for size in SIZES) + " |")
    print("| --- | --- |" + " ---: |" * len(SIZES))
    for verdict, name, wrong in (
        ("right pairs called wrong", "right", edges_disagree),
        (
            "masks of the next frame missed",
            "of the next frame",
            lambda total: not edges_disagree(total),
        ),
        ("right channels called swapped", "right", channels_swapped),
        ("swapped channels missed", "swapped channels", lambda total: not channels_swapped(total)),
    ):
        for drive, scores in scored.items():
            shares = []
            for size in SIZES:
                samples = random.integers(len(scores[name]), size=(args.draws, size))
                totals = (DoubtTotal.of(scores[name][at] for at in sample) for sample in samples)
                shares.append(f"{sum(map(wrong, totals)) / args.draws:.2%}")
            print(f"| {verdict} | {drive} | " + " | ".join(shares) + " |")


if __name__ == "__main__":
    main()
