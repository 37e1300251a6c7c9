"""UserError, UnavailableError and RejectError: what a user can fix, as opposed to bugs."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator

USER_FIXABLE_ERRNOS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS),
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR),
)
"""File-system errors that a user can fix: full disk, missing permission, a file in the way."""

_USER_INFO = re.compile(r"(?<=://)[^/\s]+@")


def redact_credentials(text: str) -> str:
    """A text with ``***`` in place of the user's name and password in its URIs."""
    return _USER_INFO.sub("***@", text)


class UserError(Exception):
    """A mistake in the input or setup; one line says what is wrong, what was expected, what to do.

    Command lines print the message and exit with code 2; flows fail without a retry. A URI in the
    message, such as an MLflow server's, is shown without its password.
    """

    # Without an __init__ of its own: TensorFlow could not re-raise it.
    def __str__(self) -> str:
        return redact_credentials(super().__str__())


class UnavailableError(UserError):
    """A service does not answer: nothing is lost, and the same command may work later.

    Command lines print the message and exit with code 75; flows retry.
    """


class RejectError(Exception):
    """An input that cannot be used; the rest of the job goes on.

    Args:
        code: a short, stable reason such as ``truncated``; analysts group by it.
        message: what was expected and what was found.
        path: the file at fault, if an input has several.
    """

    def __init__(self, code: str, message: str, path: str | None = None) -> None:
        super().__init__(code, message, path)
        self.code = code
        self.message = message
        self.path = path

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


@contextlib.contextmanager
def disk_errors_as_user_errors() -> Iterator[None]:
    """Turns an OSError that a user can fix into a UserError.

    Raises:
        UserError: the block raised an OSError with one of ``USER_FIXABLE_ERRNOS``.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in USER_FIXABLE_ERRNOS:
            raise
        place = f"{error.filename!r}: " if error.filename else ""
        raise UserError(f"{place}{error.strerror or error}; nothing was published") from error


def first_line(error: object, max_length: int = 160) -> str:
    """The first line of an error's message, or the error's type if the message is empty.

    Args:
        max_length: in characters; the default fits a terminal.
    """
    lines = str(error).strip().splitlines()
    # OpenVINO's messages begin with the place in its source code.
    lines = [line for line in lines if not line.startswith("Exception from ")] or lines
    line = lines[0] if lines else type(error).__name__
    return line if len(line) <= max_length else f"{line[: max_length - 3]}..."
