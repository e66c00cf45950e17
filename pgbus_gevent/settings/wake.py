"""The values of the setting ``wake``: what tells a worker of new messages."""

from __future__ import annotations

import re

from .casting import Kind, presentable, text

_WORDS = ("postgres", "poll")
_URL = re.compile(r"rediss?(?:\+(?:cluster|sentinel))?://[^\s\0]+")


def wake() -> Kind[str]:
    """``postgres``, ``poll``, or the URL of a Redis or Valkey. Passwords in the URL are hidden."""
    kind = text(
        "{postgres,poll,URL}",
        "postgres, poll, redis://host:6379/0, rediss://…, redis+sentinel://host1,host2/name or redis+cluster://host1,host2",
        lambda word: word in _WORDS or _URL.fullmatch(word) is not None,
        hide,
    )
    cast = kind.cast
    return Kind(
        kind.metavar,
        lambda value: cast(value.lower() if isinstance(value, str) and value.lower() in _WORDS else value),
        kind.allowed,
        hide=hide,
    )


def is_redis(wake: str) -> bool:
    """Whether a value of the setting is the URL of a Redis."""
    return wake.startswith("redis")


def hide(value: object) -> object:
    """Return the value without its passwords, for errors and logs."""
    if not isinstance(value, str) or "://" not in value:
        return presentable(value)
    value = re.sub(r"(?<=://).*@", "***@", value)
    return re.sub(r"(sentinel_password=)[^&]*", r"\1***", value)
