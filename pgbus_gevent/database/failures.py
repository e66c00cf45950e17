"""The package's exceptions for the errors of a driver. This module knows no driver."""

from __future__ import annotations

from ..errors import DatabaseError, DatabaseUnavailable, InvalidArgument

_UNAVAILABLE_CLASSES = ("08", "57", "58", "53")  # connection, operator intervention, system error, out of resources
_INVALID_PARAMETER = "22023"


def meaning(error: Exception, code: str | None, *, lost: bool) -> Exception:
    """Return the exception for a driver's error with PostgreSQL's ``code``. ``lost`` says that the connection is lost."""
    message = first_line(error)
    if code == _INVALID_PARAMETER:
        return InvalidArgument(message)
    if lost or (code or "").startswith(_UNAVAILABLE_CLASSES):
        return DatabaseUnavailable(f"PostgreSQL is not available: {message}", code)
    return DatabaseError(message, code)


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, without its context."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
