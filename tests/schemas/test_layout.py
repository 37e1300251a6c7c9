"""Names of folders: readable in any script, and no two texts have the same."""

import itertools

import pytest

from schemas.layout import partition_path, partition_value, safe_name

KEPT = ("lyft-unet", "drive_1.v2", "路面", "शहर-१", "été", "Ñandú", "2024-05-01")


@pytest.mark.parametrize("text", KEPT)
def test_letters_of_any_script_stay(text: str) -> None:
    assert safe_name(text) == text


def test_no_two_texts_have_one_name() -> None:
    texts = [
        *("a b", "a-b", "a/b", "a  b", "a:b", " a b", "..", ".", "", "-", "unnamed", "a.", "a"),
        *("x" * 300, "x" * 301, "路" * 100, "路" * 101, "a\u200cb", "ab"),
    ]
    names = [safe_name(text) for text in texts]
    assert len(set(names)) == len(texts)
    for name in names:
        assert safe_name(name) == name
        assert 0 < len(name.encode()) <= 120
        assert not set(name) & set("/\\ :=%?*")
        assert name.strip(".") == name
    assert safe_name("a b").startswith("a-b-")


def test_one_text_in_two_encodings_has_one_name() -> None:
    assert safe_name("e\u0301te\u0301") == safe_name("été")


@pytest.mark.parametrize(
    "value",
    [
        *("2024-05-01", "001", "1_000", "1e5", "3.10", "20240501T120000Z", "True", "none", "NaN"),
        *("0xBEEF", "0b101", "epoch", "__HIVE_DEFAULT_PARTITION__"),
    ],
)
def test_values_like_dates_and_numbers_are_marked_as_text(value: str) -> None:
    assert partition_value(value) == f"_{value}"
    assert partition_value(f"_{value}") == f"__{value}"
    assert partition_path("m", "v1", value) == f"model=m/version=v1/source=_{value}"


@pytest.mark.parametrize(
    "value", ["lyft", "v3", "drive-1", "nano", "路面", "2024-05-01-cam", "0xlyft", "epochs"]
)
def test_other_values_are_unchanged(value: str) -> None:
    assert partition_value(value) == value


def test_a_partition_takes_safe_names_only() -> None:
    good = ("路面", "v3", "drive-1")
    assert partition_path(*good) == "model=路面/version=v3/source=drive-1"
    for at, bad in itertools.product(range(3), ("a/b", "..", "a b", "")):
        parts = list(good)
        parts[at] = bad
        with pytest.raises(ValueError, match="cannot name a folder"):
            partition_path(*parts)
