import numpy as np
import pytest

from schemas.classes import VOID, Taxonomy, builtin_taxonomies, load_taxonomy
from schemas.errors import UserError


@pytest.mark.parametrize(
    ("name", "classes"), [("carla-0.8", 13), ("carla-0.9", 23), ("lyft-challenge", 3)]
)
def test_the_taxonomies_that_come_with_the_project(name: str, classes: int) -> None:
    assert name in builtin_taxonomies()
    assert len(load_taxonomy(name)) == classes


def test_the_challenge_colours() -> None:
    taxonomy = load_taxonomy("carla-0.8")
    assert taxonomy.names[7] == "Roads"
    assert taxonomy.palette[21:24] == bytes([128, 64, 128])
    assert len(taxonomy.palette) == 768


def test_values_outside_a_taxonomy_are_named() -> None:
    taxonomy = load_taxonomy("carla-0.8")
    mask = np.array([[0, 12], [13, 200]], np.uint8)
    assert taxonomy.unknown_values(mask) == [13, 200]
    assert taxonomy.unknown_values(mask[:1]) == []


def test_the_challenge_remaps_and_voids_the_hood() -> None:
    taxonomy = load_taxonomy("lyft-challenge")
    raw = np.full((600, 4), 10, np.uint8)
    raw[0] = [6, 7, 3, 12]
    assert taxonomy.unknown_values(raw) == []
    ids = taxonomy.class_ids(raw)
    assert ids[0].tolist() == [1, 1, 0, 0]
    assert ids[495].tolist() == [2] * 4
    assert ids[496].tolist() == [VOID] * 4
    assert taxonomy.unknown_values(np.full((1, 1), 13, np.uint8)) == [13]


def test_a_file_of_the_users(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nclasses:\n- {id: 0, name: a, colour: [0, 0, 0]}\n"
        "- {id: 1, name: b, colour: [1, 2, 3]}\nremap: {9: 1, 8: 255}\n"
    )
    taxonomy = load_taxonomy(str(path))
    assert taxonomy.class_ids(np.array([[9, 8, 0, 1]], np.uint8)).tolist() == [[1, 255, 0, 1]]


BLACK = "{id: %d, name: %s, colour: [0, 0, 0]}"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name: x\nclasses:\n- {id: 1, name: a, colour: [0, 0, 0]}", "classes: Tuple should have"),
        (
            f"{{name: x, classes: [{BLACK % (0, 'a')}, {BLACK % (2, 'b')}]}}",
            "class ids must be 0 to 1 in order",
        ),
        ("name: [", "expected"),
        ("name: \udcff", "can't decode byte 0xff"),
        (
            "{name: x, classes: [{id: 0, name: a, colour: [0, 0, 300]}]}",
            r"classes\.0\.colour\.2: Input should be less than or equal to 255, found 300",
        ),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text: str, complaint: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError, match=complaint) as caught:
        load_taxonomy(str(path))
    assert "\n" not in str(caught.value)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"carla-0\.8, carla-0\.9, lyft-challenge"):
        load_taxonomy("carla")


def test_the_hash_follows_the_mapping() -> None:
    taxonomy = load_taxonomy("carla-0.8")
    other = Taxonomy(**{**taxonomy.model_dump(), "remap": {6: 7}})
    assert other.sha256 != taxonomy.sha256
    assert other.mapping_sha256 != taxonomy.mapping_sha256
    assert load_taxonomy("carla-0.8").sha256 == taxonomy.sha256


def test_what_is_only_looked_at_is_not_in_the_hash_of_the_mapping() -> None:
    taxonomy = load_taxonomy("carla-0.8")
    other = taxonomy.model_dump() | {"description": "Corrected."}
    other["classes"][7]["colour"] = (1, 2, 3)
    changed = Taxonomy(**other)
    assert changed.sha256 != taxonomy.sha256
    assert changed.mapping_sha256 == taxonomy.mapping_sha256
    other["classes"][7]["name"] = "Highway"
    assert Taxonomy(**other).mapping_sha256 != taxonomy.mapping_sha256
