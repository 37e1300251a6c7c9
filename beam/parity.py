"""Parity of an engine with TensorFlow in float32: ``python -m beam.parity``.

Predicts one split of a dataset with both and prints a Markdown table of the differences.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from beam.infer.engines.base import Engine, Runtime
from beam.infer.engines.choice import choose_runtime, load_engine
from beam.infer.handler import predict_windows
from beam.infer.model_uri import ResolvedModel, resolve_model, with_graph
from beam.infer.pictures import Picture, read_shard
from beam.infer.plan import check_taxonomy
from images.resize import resize_nearest
from runtime.command_line import Parser, add_config, add_tracking_uri, config_from, run_main
from runtime.errors import UserError
from schemas.config import InferConfig
from schemas.manifest import load_manifest
from schemas.stats import ConfusionMatrix

_BATCH = 16
_HEADER = (
    "| engine | precision | images | equal pixels | largest change of a confidence "
    "| change of pixel accuracy | largest change of an IoU |"
)


@dataclass(frozen=True)
class Parity:
    """A comparison of an engine with the reference over the pixels of all images.

    Attributes:
        images: number of images that both predicted.
        equal_share: share of pixels with the same class.
        confidence_change: largest absolute difference of a pixel's confidence.
        accuracy_change: pixel accuracy of the engine minus that of the reference.
        iou_change: the largest change of a class's IoU, with its sign, and the class's name.
    """

    images: int
    equal_share: float
    confidence_change: float
    accuracy_change: float
    iou_change: tuple[float, str]


def measure(
    pictures: Iterator[Picture],
    reference: Engine,
    engine: Engine,
    names: Sequence[str],
    size: tuple[int, int],
) -> Parity:
    """Predicts all pictures with both engines; the truth is compared at their predicted size.

    Args:
        pictures: each with a truth.
        names: of the classes.
        size: height and width of the images that the engines take.

    Raises:
        UserError: no picture has a pixel whose class is known.
    """
    classes = len(names)
    images = pixels = equal = 0
    confidence_change = 0.0
    expected, actual = ConfusionMatrix.zero(classes), ConfusionMatrix.zero(classes)
    for batch in _batches(pictures):
        images += len(batch)
        both = zip(
            predict_windows(batch, reference, size),
            predict_windows(batch, engine, size),
            strict=True,
        )
        for picture, ((expected_ids, expected_confidence), (ids, confidence)) in zip(
            batch, both, strict=True
        ):
            pixels += ids.size
            equal += int((ids == expected_ids).sum())
            differences = np.abs(confidence - expected_confidence)
            confidence_change = max(confidence_change, float(differences.max()))
            assert picture.truth is not None
            truth = resize_nearest(picture.truth, *ids.shape)
            expected += ConfusionMatrix.of(truth, expected_ids, classes)
            actual += ConfusionMatrix.of(truth, ids, classes)
    change = actual.iou() - expected.iou()
    if np.isnan(change).all():
        raise UserError("no pixel's class is known here, so no IoU can be compared")
    # The IoU of a class that does not occur is NaN, and so is its change.
    largest = int(np.nanargmax(np.abs(change)))
    return Parity(
        images=images,
        equal_share=equal / pixels,
        confidence_change=confidence_change,
        accuracy_change=actual.pixel_accuracy() - expected.pixel_accuracy(),
        iou_change=(float(change[largest]), names[largest]),
    )


def report(model: ResolvedModel, dataset: str, split: str, runtimes: Sequence[Runtime]) -> str:
    """A table of runtimes, each compared with TensorFlow in float32.

    Raises:
        UserError: the split has no record, the taxonomies differ, or an engine cannot be used.
    """
    manifest = load_manifest(dataset)
    check_taxonomy(model, dataset, manifest)
    if not manifest.splits[split].records:
        raise UserError(f"dataset {dataset!r} has no record in split {split}")
    reference = load_engine(
        model, dataclasses.replace(runtimes[0], engine="tensorflow", precision="float32")
    )
    lines = [_HEADER, "| --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    for runtime in runtimes:
        pictures = (
            item
            for name in manifest.shard_names(split)
            for item in read_shard(dataset, split, name, model)
            if isinstance(item, Picture) and item.truth is not None
        )
        engine, size = load_engine(model, runtime), (model.height, model.width)
        parity = measure(pictures, reference, engine, model.taxonomy.names, size)
        change, name = parity.iou_change
        lines.append(
            f"| {runtime.engine} | {runtime.precision} | {parity.images} "
            f"| {parity.equal_share:.4%} | {parity.confidence_change:.4f} "
            f"| {parity.accuracy_change:+.5f} | {change:+.5f} ({name}) |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> str:
    """Runs the command line and returns the table."""
    parser = Parser(
        prog="python -m beam.parity",
        description="Holds an engine's masks against those of TensorFlow in float32.",
    )
    parser.add_argument("--model", required=True, help="models:/name@alias or a .keras file")
    parser.add_argument("--dataset", required=True, help="folder that beam.ingest published")
    add_tracking_uri(parser)
    parser.add_argument(
        "--precisions", nargs="+", help="several at once, e.g. float32 bfloat16 (default: one)"
    )
    add_config(parser, InferConfig)
    parser.set_defaults(split="test")
    args = parser.parse_args(arguments)
    configs = []
    for precision in args.precisions or [args.precision]:
        args.precision = precision
        configs.append(config_from(InferConfig, args))
    config = configs[0]
    if config.split == "all":
        raise UserError("expected one split: --split=train, validation or test")
    with tempfile.TemporaryDirectory(prefix="lyft-parity-") as scratch:
        model = resolve_model(args.model, config, args.tracking_uri, scratch)
        runtimes = [choose_runtime(config, processes=1) for config in configs]
        if any(runtime.engine == "openvino" for runtime in runtimes):
            model = with_graph(model, Path(scratch))
        return report(model, args.dataset, config.split, runtimes)


def _batches(pictures: Iterator[Picture]) -> Iterator[list[Picture]]:
    while batch := list(islice(pictures, _BATCH)):
        yield batch


if __name__ == "__main__":
    sys.exit(run_main(main))
