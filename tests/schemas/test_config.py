"""Parameters that are derived: epochs, paths below the home folder, and the hash."""

import hashlib

import pytest
from pydantic import ValidationError

from schemas.config import InferConfig, IngestConfig, TrainConfig


@pytest.mark.parametrize(
    ("images", "batch_size", "epochs"),
    [(115, 4, 90), (120, 4, 90), (121, 4, 88), (200, 4, 54), (3750, 4, 18), (3750, 32, 23)],
)
def test_epochs_follow_from_the_number_of_images(images, batch_size, epochs) -> None:
    config = TrainConfig(batch_size=batch_size).for_images(images)
    assert config == TrainConfig(batch_size=batch_size, epochs=epochs)


@pytest.mark.parametrize("images", [0, 1, 3, 10**9])
def test_any_number_of_images_gives_epochs_within_bounds(images: int) -> None:
    assert 18 <= TrainConfig().for_images(images).epochs <= 90


def test_configured_epochs_are_kept() -> None:
    assert TrainConfig(epochs=7).for_images(10).epochs == 7


@pytest.mark.parametrize("name", ["max_class_weight", "clip_norm"])
def test_numbers_are_finite_so_that_a_stored_configuration_can_be_read(name: str) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        TrainConfig(**{name: float("inf")})


def test_a_tilde_in_a_files_path_is_the_home_folder(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    config = IngestConfig(layout="~/l.yaml", pairs="~/p.csv", taxonomy="~/t.yaml")
    assert config == IngestConfig(
        layout="/home/ada/l.yaml", pairs="/home/ada/p.csv", taxonomy="/home/ada/t.yaml"
    )
    train = TrainConfig(start_from="~/m.keras", encoder_weights="~/w.pth")
    assert (train.start_from, train.encoder_weights) == ("/home/ada/m.keras", "/home/ada/w.pth")
    assert InferConfig(taxonomy="~/t.yaml").taxonomy == "/home/ada/t.yaml"
    assert TrainConfig().encoder_weights == "imagenet"


def test_a_part_without_bytes_is_refused() -> None:
    for size in (0, 1e-9):
        with pytest.raises(ValidationError, match="part_mib"):
            InferConfig(part_mib=size)


def test_archives_that_are_skipped_leave_the_hash_as_it_was() -> None:
    plain = IngestConfig()
    before = plain.model_dump_json(exclude={"inventory", "archives"})
    assert plain.sha256() == hashlib.sha256(before.encode()).hexdigest()
    assert IngestConfig(inventory="files.csv").sha256() == plain.sha256()
    assert IngestConfig(archives="open").sha256() != plain.sha256()
