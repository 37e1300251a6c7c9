"""A source is listed once: workers read the listing from files."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from inference import query, run_infer
from ingesting import run_ingest
from jobs import Trained

from beam.shared import staged_listing
from beam.shared.source import RawSource
from flows.flink_demo import published_digests
from runtime import listing
from schemas.config import InferConfig, TrainConfig
from schemas.raw_layout import load_layout


def test_a_listing_is_read_as_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a name looks like; hidden files and broken links included."""
    raw = tmp_path / "raw/CameraRGB"
    raw.mkdir(parents=True)
    for name in ("a.png", "ü \n.png", os.fsdecode(b"\xff.png"), ".hidden", "b.txt"):
        (raw / name).write_bytes(name.encode(errors="surrogateescape"))
    (raw / "broken.png").symlink_to("nowhere")
    os.utime(raw / "a.png", ns=(1, 1_700_000_000_123_456_789))
    monkeypatch.setattr(staged_listing, "_MAX_FILES", 4)
    source = RawSource(str(tmp_path / "raw"), load_layout("lyft"))
    (tmp_path / "listing").mkdir()
    expected = list(source.entries(listing_folder=str(tmp_path / "listing")))
    (tmp_path / "staging").mkdir()
    places = staged_listing.staged_listing(str(tmp_path / "listing"), str(tmp_path / "staging"))
    assert [Path(place).name for place in places] == [
        f"listing-{at:05d}.parquet" for at in range(2)
    ]
    again = replace(source, listed=places)
    assert again.parts() == list(places)
    assert [one for part in places for one in again.entries(part)] == expected
    assert list(again.entries()) == expected
    assert len(expected) == 6


def test_jobs_list_a_source_once(
    scenes: Path,
    dataset: Path,
    plain_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    walked = []
    walk_all = listing.walk_all

    def counting(root: str):
        walked.append(root)
        return walk_all(root)

    monkeypatch.setattr(listing, "walk_all", counting)
    monkeypatch.setattr(staged_listing, "_MAX_FILES", 7)
    assert published_digests(run_ingest(scenes, tmp_path)) == published_digests(dataset)
    assert walked == [str(scenes)]
    model = Trained(str(plain_model), "", TrainConfig())
    run_infer(model, tmp_path / "out", InferConfig(height=32, width=48), source=scenes)
    assert walked == [str(scenes)] * 2
    assert query(tmp_path / "out", "SELECT images_predicted FROM runs") == [(40,)]
