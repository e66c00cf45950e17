"""Tells a Redis that refuses the login, or a command, from one that is away. Only the first needs a person to correct something."""

from __future__ import annotations

from redis.exceptions import AuthenticationError, NoPermissionError

from ..errors import RedisRefused, RedisUnavailable

LOGIN = "the user and the password in PGBUS_WAKE"
"""Where the login at a server is given."""

SENTINEL_LOGIN = "sentinel_username and sentinel_password in PGBUS_WAKE"
"""Where the login at a Sentinel is given."""

RIGHTS = "grant this user the rights in docs/redis.md, The user in Redis"
"""What to do about a right that is denied."""


def refused(where: object, error: Exception, *, login: str = LOGIN) -> RedisRefused | None:
    """Return what to raise if ``error`` says that Redis refuses this user; None if it says something else.

    ``where`` is the server. redis-py has taken the word in capitals, such as NOPERM, off the text of the error.
    """
    text = str(error)
    if isinstance(error, NoPermissionError):
        return RedisRefused(f"{where} denies a right (NOPERM {text})", RIGHTS, f"NOPERM {text}")
    if not isinstance(error, AuthenticationError):
        return None
    if text.startswith("Authentication required"):
        return RedisRefused(f"{where} asks for a login (NOAUTH)", f"give {login}", "NOAUTH")
    if "without any password" in text:
        todo = f"leave out {login}, or set a password in Redis"
        return RedisRefused(f"{where} refuses the login, because it has no password", todo, "no password")
    return RedisRefused(f"{where} refuses the login (WRONGPASS)", f"correct {login}", "WRONGPASS")


def failure(where: object, error: Exception, doing: str, *, login: str = LOGIN) -> RedisUnavailable:
    """Return what to raise for an error of redis-py, of a socket, or an error reply. ``doing`` says what failed."""
    return refused(where, error, login=login) or RedisUnavailable(f"{where} {doing}: {error}")
