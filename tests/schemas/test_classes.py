"""Taxonomies: class ids of raw values and colours, void, hashes, invalid files."""

import numpy as np
import pytest

from runtime.errors import UserError
from schemas.classes import VOID, Taxonomy, builtin_taxonomies, load_taxonomy


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("camvid-11", 11),
        ("carla-0.8", 13),
        ("carla-0.9", 23),
        ("carla-0.9.14", 29),
        ("cityscapes", 19),
        ("lyft-challenge", 3),
    ],
)
def test_the_taxonomies_that_come_with_the_project(name: str, classes: int) -> None:
    assert name in builtin_taxonomies()
    taxonomy = load_taxonomy(name)
    assert (taxonomy.name, len(taxonomy)) == (name, classes)
    assert Taxonomy.model_validate_json(taxonomy.model_dump_json()) == taxonomy


@pytest.mark.parametrize("name", builtin_taxonomies())
def test_masks_of_their_colours(name: str) -> None:
    taxonomy = load_taxonomy(name)
    colours = np.array([[label.colour for label in taxonomy.classes]], np.uint8)
    ids, unknown = taxonomy.ids_of_colours(colours)
    assert ids.tolist() == [list(range(len(taxonomy)))]
    assert unknown == []


@pytest.mark.parametrize("name", ["carla-0.8", "carla-0.9"])
def test_expected_shares_add_up_to_one(name: str) -> None:
    shares = [one.expected.share for one in load_taxonomy(name).classes if one.expected]
    assert sum(shares) == pytest.approx(1, abs=0.002)


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


def test_cityscapes_has_34_ids_and_19_classes() -> None:
    taxonomy = load_taxonomy("cityscapes")
    raw = np.arange(34, dtype=np.uint8).reshape(2, 17)
    assert taxonomy.unknown_values(raw) == []
    ids = taxonomy.class_ids(raw)
    assert ids[ids != VOID].tolist() == list(range(19))
    assert (ids[0, 7], ids[0, 0], ids[1, 12]) == (0, VOID, VOID)
    outside = np.array([[34, 255, 33]], np.uint8)
    assert taxonomy.unknown_values(outside) == [34]
    assert taxonomy.class_ids(outside[:, 1:]).tolist() == [[VOID, 18]]


def test_only_remapped_values_are_allowed() -> None:
    classes = load_taxonomy("lyft-challenge").model_dump()["classes"]
    remap = {7: 1, 10: 2, 20: 0}
    one = Taxonomy(name="x", classes=classes, remap=remap, only_remapped=True)
    raw = np.array([[0, 1, 7, 10, 20]], np.uint8)
    assert one.unknown_values(raw) == [0, 1]
    assert Taxonomy(name="x", classes=classes, remap=remap).unknown_values(raw) == []
    assert one.mapping_sha256 != Taxonomy(name="x", classes=classes, remap=remap).mapping_sha256
    binary, _ = one.one_vs_rest(["Roads"])
    assert binary.unknown_values(raw) == [0, 1]
    assert binary.class_ids(raw[:, 2:]).tolist() == [[1, 0, 0]]


def test_camvid_calls_11_void_and_has_32_colours() -> None:
    taxonomy = load_taxonomy("camvid-11")
    raw = np.arange(12, dtype=np.uint8)[None]
    assert taxonomy.class_ids(raw).tolist() == [[*range(11), VOID]]
    assert taxonomy.unknown_values(np.full((1, 1), 12, np.uint8)) == [12]
    assert len(taxonomy.id_by_colour) == 32
    colours = np.array([[(0, 0, 0), (128, 0, 192), (64, 128, 192), (192, 0, 192)]], np.uint8)
    assert taxonomy.ids_of_colours(colours)[0].tolist() == [[VOID, 3, 8, 10]]


def test_unknown_colours_are_named_and_void() -> None:
    rgb = np.array([[(128, 64, 128), (128, 64, 129), (0, 0, 142), (1, 2, 3)]], np.uint8)
    ids, unknown = load_taxonomy("carla-0.8").ids_of_colours(rgb)
    assert ids.tolist() == [[7, VOID, 10, VOID]]
    assert unknown == [(1, 2, 3), (128, 64, 129)]


def test_masks_of_colours_have_void_regions() -> None:
    taxonomy = load_taxonomy("lyft-challenge")
    rgb = np.full((600, 4, 3), (0, 0, 255), np.uint8)
    rgb[0] = [(157, 234, 50), (128, 64, 128), (70, 70, 70), (220, 20, 60)]
    ids, unknown = taxonomy.ids_of_colours(rgb)
    assert unknown == []
    assert ids[0].tolist() == [1, 1, 0, 0]
    assert ids[495].tolist() == [2] * 4
    assert ids[496].tolist() == [VOID] * 4


def test_one_colour_of_two_classes() -> None:
    values = load_taxonomy("carla-0.8").model_dump()
    values["classes"][11]["colour"] = values["classes"][1]["colour"]
    taxonomy = Taxonomy(**values)
    rgb = np.full((1, 1, 3), 70, np.uint8)
    with pytest.raises(UserError, match="both class 1 Buildings and class 11 Walls"):
        taxonomy.ids_of_colours(rgb)
    binary, _ = taxonomy.one_vs_rest(["Walls"])
    with pytest.raises(UserError, match="class 0 Rest and class 1 Walls"):
        binary.ids_of_colours(rgb)
    values["colours"] = [*values["colours"], {"colour": (70, 70, 70), "to": 11}]
    assert Taxonomy(**values).ids_of_colours(rgb)[0].tolist() == [[11]]


def test_a_binary_taxonomy_reads_the_same_colours() -> None:
    taxonomy = load_taxonomy("cityscapes")
    binary, table = taxonomy.one_vs_rest(["car", "bus"])
    rgb = np.array([list(taxonomy.id_by_colour)], np.uint8)
    ids, unknown = taxonomy.ids_of_colours(rgb)
    assert unknown == []
    assert np.array_equal(binary.ids_of_colours(rgb)[0], table[ids])


def test_a_users_own_file(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nclasses:\n- {id: 0, name: a, colour: [0, 0, 0]}\n"
        "- {id: 1, name: b, colour: [1, 2, 3]}\nremap: {9: 1, 8: 255}\n"
    )
    taxonomy = load_taxonomy(str(path))
    assert taxonomy.class_ids(np.array([[9, 8, 0, 1]], np.uint8)).tolist() == [[1, 255, 0, 1]]


BLACK = "{id: %d, name: %s, colour: [0, 0, 0]}"
TWO = f"name: x\nclasses: [{BLACK % (0, 'a')}, {BLACK % (1, 'b')}]\n"


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
        (
            f"{TWO}colours: [{{colour: [1, 2, 3], to: 2}}]",
            r"colour \(1, 2, 3\): 2 is not the id of a class",
        ),
        (f"{TWO}remap: {{3: 1, 4: 0, 3: 0}}", "found the key 3 twice .* line 3"),
        (f"{TWO}name: y", "found the key 'name' twice"),
        (
            f"{TWO}void_regions: [{{class_id: 1, top: 0.8, bottom: 0.2}}]",
            r"void_regions\.0: expected top above bottom, and left before right",
        ),
        (
            f"{TWO}only_remapped: true",
            "only_remapped: a remap that lists the values is missing",
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
    with pytest.raises(UserError, match=r"carla-0\.8, carla-0\.9, carla-0\.9\.14, "):
        load_taxonomy("carla")


def test_the_hash_follows_the_mapping() -> None:
    taxonomy = load_taxonomy("carla-0.8")
    other = Taxonomy(**{**taxonomy.model_dump(), "remap": {6: 7}})
    assert other.sha256 != taxonomy.sha256
    assert other.mapping_sha256 != taxonomy.mapping_sha256
    assert load_taxonomy("carla-0.8").sha256 == taxonomy.sha256


def test_colours_and_descriptions_are_not_in_the_hash_of_the_mapping() -> None:
    taxonomy = load_taxonomy("carla-0.8")
    other = taxonomy.model_dump() | {"description": "Corrected."}
    other["classes"][7]["colour"] = (1, 2, 3)
    changed = Taxonomy(**other)
    assert changed.sha256 != taxonomy.sha256
    assert changed.mapping_sha256 == taxonomy.mapping_sha256
    other["classes"][7]["name"] = "Highway"
    assert Taxonomy(**other).mapping_sha256 != taxonomy.mapping_sha256
