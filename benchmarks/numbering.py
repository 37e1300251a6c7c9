"""Error rates of the check of class numberings: ``make bench BENCH=numbering RAW=folder``.

Reads the real masks as they are and translated to CARLA's other numberings. Prints the distance of
each from every reading in nats, and ingest's verdict for each taxonomy. Then it samples
datasets whose classes have other shares and places than the real ones, and counts wrong verdicts.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from beam.ingest.numbering import CLOSE, MARGIN, Reading, distance, find_mix_up
from flows.scenes import draw_scene
from schemas.classes import load_taxonomy
from schemas.stats import PixelStats

NUMBERINGS = ("carla-0.8", "carla-0.9", "carla-0.9.14")
READINGS = [Reading(load_taxonomy(name), luma) for luma in (False, True) for name in NUMBERINGS]
SKY = {"carla-0.9": 13, "carla-0.9.14": 11}
TO_0914 = [0, 3, 5, 22, 12, 6, 24, 1, 2, 9, 14, 4, 8]
"""The id in carla-0.9.14 of each class of carla-0.8."""


@dataclass
class Counts:
    """Pixels by value, in the whole picture and in its upper half, float (images, 256)."""

    all: np.ndarray
    upper: np.ndarray

    def __getitem__(self, chosen):
        return Counts(self.all[chosen], self.upper[chosen])

    def translated(self, to):
        """The same masks with each value replaced, from a table of values."""
        made = [np.zeros_like(one) for one in (self.all, self.upper)]
        for new, old in zip(made, (self.all, self.upper), strict=True):
            np.add.at(new.T, to, old.T)
        return Counts(*made)

    def with_sky(self, value):
        """The same masks where the unlabelled pixels of the upper half are sky."""
        made = Counts(self.all.copy(), self.upper.copy())
        for one in (made.all, made.upper):
            one[:, value] += self.upper[:, 0]
            one[:, 0] -= self.upper[:, 0]
        return made

    def stats(self, classes):
        """The statistics that ingest computes of them."""
        rest = np.zeros(classes, np.int64)
        pixels, upper = (
            one.sum(axis=0)[:classes].astype(np.int64) for one in (self.all, self.upper)
        )
        channels = np.zeros(3, np.int64)
        return PixelStats(pixels, 0, rest, rest, upper, channels, channels.astype(object))


def table(**changes):
    """A table of values from the values that change."""
    to = np.arange(256)
    for old, new in changes.items():
        to[int(old[1:])] = new
    return to


LUMA = np.array([round(0.299 * value) for value in range(256)])
TO_14 = table(**{f"v{old}": new for old, new in enumerate(TO_0914)})
FITS_09 = np.where(np.arange(256) > 22, 0, np.arange(256))


def count(mask):
    """Pixels by value of a raw mask (height, width)."""
    return (
        np.bincount(mask.ravel(), minlength=256).astype(float),
        np.bincount(mask[: len(mask) // 2].ravel(), minlength=256).astype(float),
    )


def count_file(path):
    return count(np.asarray(Image.open(path).convert("RGB"))[..., 0])


def count_scene(seed):
    return count(draw_scene(seed, 400, 300)[1][..., 0])


def fits(counts, name):
    """Whether all values are classes of a taxonomy."""
    return not counts.all[:, len(load_taxonomy(name)) :].any()


def verdicts(counts, right):
    """What the check says for each taxonomy that the values fit; ``!`` marks an error."""
    verdicts_by_name = []
    for name in NUMBERINGS:
        if not fits(counts, name):
            continue
        taxonomy = load_taxonomy(name)
        mix_up = find_mix_up(counts.stats(len(taxonomy)), taxonomy)
        verdict = "ok"
        if mix_up:
            verdict = mix_up.reading.taxonomy.name + " luma" * mix_up.reading.luma
        is_wrong = (mix_up is None) != (name in right)
        verdicts_by_name.append(f"{name}: {verdict}{'!' * is_wrong}")
    return "; ".join(verdicts_by_name)


def draw(random, shares, spread):
    """A dataset whose classes have other shares and other places than the given one's."""
    upper = shares.upper.sum(0) / np.maximum(shares.all.sum(0), 1)
    factor = np.exp(random.normal(0, spread, 256))
    pixels = shares.all.sum(0) * factor
    odds = np.clip(upper, 0.001, 0.999) / (1 - np.clip(upper, 0.001, 0.999))
    odds = odds * np.exp(random.normal(0, spread, 256))
    pixels = pixels / pixels.sum() * 1e9
    return Counts(pixels[None], (pixels * odds / (1 + odds))[None])


def cases(real, scenes, drives, random):
    """Masks by name, and the taxonomies that read them right."""
    old, new = {"carla-0.8", "carla-0.9"}, {"carla-0.9.14"}
    made = {"real": (real, old)}
    for drive in sorted(set(drives)):
        made[drive] = (real[drives == drive], old)
    for index in range(10):
        made[f"12 frames, {index}"] = (real[random.choice(len(drives), 12, False)], old)
    made["scenes"] = (scenes, old)
    for index in range(10):
        made[f"8 scenes, {index}"] = (scenes[8 * index : 8 * index + 8], old)
    newer = real.translated(TO_14)
    newer_with_sky = newer.with_sky(SKY["carla-0.9.14"])
    made["as 0.9, sky"] = (real.with_sky(SKY["carla-0.9"]), {"carla-0.9"})
    made["as 0.9.14"] = (newer, new)
    made["as 0.9.14, sky"] = (newer_with_sky, new)
    # A country road: what are sidewalks in town is a class without expectations.
    made["0.9, terrain"] = (made["as 0.9, sky"][0].translated(table(v8=22)), {"carla-0.9"})
    made["0.9.14, terrain"] = (newer_with_sky.translated(table(v2=10)), new)
    made["0.9.14 up to 22"] = (newer.translated(FITS_09), new)
    made["same, sky"] = (newer_with_sky.translated(FITS_09), new)
    for name in ("real", "scenes", "as 0.9, sky", "as 0.9.14", "as 0.9.14, sky"):
        made[f"luma, {name}"] = (made[name][0].translated(LUMA), set())
    zero = np.eye(256)[:1] * 1e6
    made["all zero"] = (Counts(zero, zero / 2), set(NUMBERINGS))
    lyft = table(v1=0, v2=0, v3=0, v4=0, v5=0, v6=7, v8=0, v9=0, v11=0, v12=0)
    made["0, 7 and 10 only"] = (real.translated(lyft), old)
    return made


def print_distances(made):
    """Each case's distance from each reading, and what the check says."""
    heads = [f"{'luma ' * one.luma}{one.taxonomy.name[6:]}" for one in READINGS]
    print(f"\n{'':20}" + "".join(f"{head:>12}" for head in heads) + "   read as: found")
    for name, (counts, right) in made.items():
        stats = counts.stats(256)
        distances = "".join(f"{distance(stats, reading):12.2f}" for reading in READINGS)
        print(f"{name:20}{distances}   {verdicts(counts, right)}")


def print_errors(made, random, datasets):
    """How often the check stops datasets that differ from the real ones."""
    print("\nshares and odds of each class times exp(N(0, spread)): datasets that are stopped")
    for spread in (0.5, 1.0, 1.5):
        for what, case, name, luma in (
            ("right", "real", "carla-0.8", False),
            ("right", "real", "carla-0.9", False),
            ("right", "as 0.9, sky", "carla-0.9", False),
            ("right", "as 0.9.14", "carla-0.9.14", False),
            ("right", "as 0.9.14, sky", "carla-0.9.14", False),
            ("0.8", "real", "carla-0.9.14", False),
            ("0.9.14 up to 22", "same, sky", "carla-0.9", False),
            ("luma", "real", "carla-0.8", True),
            ("luma, sky", "as 0.9.14, sky", "carla-0.9.14", True),
        ):
            taxonomy = load_taxonomy(name)
            alarms = 0
            for _ in range(datasets):
                drawn = draw(random, made[case][0], spread)
                drawn = drawn.translated(LUMA) if luma else drawn
                alarms += find_mix_up(drawn.stats(len(taxonomy)), taxonomy) is not None
            print(f"  {spread:3}  {what:16} read as {name:13} {alarms / datasets:6.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", required=True, help="folder of red-channel carla-0.8 masks")
    parser.add_argument("--datasets", type=int, default=500, help="drawn for each rate")
    args = parser.parse_args()
    paths = sorted(Path(args.raw).rglob("CameraSeg/*.png"))
    with ProcessPoolExecutor(2) as pool:
        real = Counts(*map(np.array, zip(*pool.map(count_file, paths), strict=True)))
        scenes = Counts(*map(np.array, zip(*pool.map(count_scene, range(80)), strict=True)))
    print(f"{len(paths)} masks; alarm: {MARGIN} nats closer, and within {CLOSE}")
    print("share and upper part of each class of carla-0.8:")
    for label in load_taxonomy("carla-0.8").classes:
        pixels, upper = real.all[:, label.id].sum(), real.upper[:, label.id].sum()
        print(f"  {label.name:14}{pixels / real.all.sum():8.4f}{upper / pixels:8.3f}")
    random = np.random.default_rng(0)
    drives = np.array([path.parent.parent.name for path in paths])
    made = cases(real, scenes, drives, random)
    print_distances(made)
    print_errors(made, random, args.datasets)


if __name__ == "__main__":
    main()
