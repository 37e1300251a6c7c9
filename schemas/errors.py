"""Errors that a user can mend, told apart from defects of ours."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in the input or the set-up: one line that says what, what was expected, what to do.

    Command lines print the message and exit with code 2; flows fail without a retry.
    """


class UnavailableError(UserError):
    """A service that does not answer now: nothing is lost, and the same command may work later.

    Command lines print the message and exit with code 75; flows try again.
    """


class RejectError(Exception):
    """One input that cannot be used, while the rest of the job goes on.

    Args:
        code: a short, stable reason such as ``truncated``; analysts group by it.
        message: what was expected and what was found.
        path: the file at fault, where an input has several.
    """

    def __init__(self, code: str, message: str, path: str | None = None) -> None:
        super().__init__(code, message, path)
        self.code = code
        self.message = message
        self.path = path

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"
