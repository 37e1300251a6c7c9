"""Truth from raw masks."""

from pathlib import Path

import numpy as np
from PIL import Image

from beam.infer.incremental import NO_RESULTS
from beam.infer.model_uri import ResolvedModel
from beam.infer.pictures import Picture, read_pair
from beam.shared.pairing import Pair
from runtime.listing import SourceFile
from schemas.classes import VOID, load_taxonomy
from schemas.config import InferConfig


def test_what_is_void_in_the_dataset_is_void_for_a_target_in_it(tmp_path: Path) -> None:
    """The hood of the car is void among vehicles, which the target Roads merges with the rest."""
    taxonomy = load_taxonomy("lyft-challenge")
    binary, table = taxonomy.one_vs_rest(["Roads"])
    model = ResolvedModel(
        "", "", "", "", "", binary, 10, 2, "nearest",
        class_table=tuple(table.tolist()), dataset_taxonomy=taxonomy,
    )  # fmt: skip
    roads, vehicles = 7, 10
    mask = np.zeros((10, 2, 3), np.uint8)
    mask[..., 0] = [roads, vehicles]
    files = []
    for name in ("image.png", "mask.png"):
        Image.fromarray(mask).save(tmp_path / name)
        files.append(SourceFile(name, (tmp_path / name).stat().st_size, 0.0))
    (picture,) = read_pair(Pair("1", *files), str(tmp_path), model, InferConfig(), NO_RESULTS)
    assert isinstance(picture, Picture)
    assert picture.truth is not None
    assert picture.truth.tolist() == [[1, 0]] * 8 + [[1, VOID]] * 2
