import pytest

from schemas.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n  what\nand why"), "what"),
        (ValueError(), "ValueError"),
        (KeyError(" "), "' '"),
        (OSError("\n \n"), "OSError"),
        (ValueError("x" * 161), "x" * 157 + "..."),
    ],
)
def test_an_error_is_one_line_whatever_it_says(error: Exception, line: str) -> None:
    assert first_line(error) == line


def test_a_line_may_be_longer() -> None:
    assert first_line(ValueError("x" * 161), 200) == "x" * 161
