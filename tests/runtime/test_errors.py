"""Errors in one line, without passwords."""

import pytest

from flows.doctor import check_mlflow
from runtime.errors import UserError, first_line
from runtime.mlflow_store import store_error


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
def test_the_first_line_of_any_error(error: Exception, line: str) -> None:
    assert first_line(error) == line


def test_the_maximum_length_can_be_set() -> None:
    assert first_line(ValueError("x" * 161), 200) == "x" * 161


def test_messages_show_no_password() -> None:
    uri = "http://user:se@cret@127.0.0.1:9"
    said = [
        str(store_error(uri, ValueError(f"API request to {uri}/api failed with exception x"))),
        str(UserError(f"model 'models:/a@b' cannot be found in {uri}: s3://bucket/c@d")),
        check_mlflow(uri).found,
        check_mlflow(uri.replace("http", "postgresql")).found,
    ]
    assert not any("cret" in one or "user" in one for one in said), said
    assert said[1] == (
        "model 'models:/a@b' cannot be found in http://***@127.0.0.1:9: s3://bucket/c@d"
    )
