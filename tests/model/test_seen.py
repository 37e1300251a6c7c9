"""How many images of a dataset a registered model has seen in its training."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from ingesting import run_ingest
from jobs import SMALL

from model.gate import _decide_on
from model.plan import plan
from model.seen import count_seen
from schemas.config import GateConfig
from schemas.layout import SOURCES


def test_the_decision_says_who_has_seen_the_test_images(trained, dataset, scenes, tmp_path) -> None:
    """A version and a champion that were trained on another split of the same images."""
    from model import tracking

    tracking.connect(trained.tracking_uri)
    resplit = run_ingest(scenes, tmp_path, SMALL.model_copy(update={"seed": 2, "test": 0.3}))
    ids = [
        {row["id"] for row in pq.read_table(folder / SOURCES).to_pylist() if row["split"] in splits}
        for folder, splits in ((dataset, ("train", "validation")), (resplit, ("test",)))
    ]
    shared = len(ids[0] & ids[1])
    assert 0 < shared < len(ids[1])
    assert count_seen(trained.model, str(resplit), ["test"]) == shared
    assert count_seen(trained.model, str(dataset), ["test"]) == 0

    def reason(folder: Path) -> str:
        chosen = plan(str(folder), trained.config)
        counts = np.ones((chosen.manifest.splits["test"].records, 13, 13), np.int64)
        uri = trained.model
        return _decide_on(uri, uri, chosen, GateConfig(), lambda _: None, counts).reason

    said = f"{trained.model} has {shared} of the {len(ids[1])} test images in the train or"
    assert reason(resplit).count(said) == 2
    assert "test images" not in reason(dataset)
