"""What the workers of a run load: an application, the authorize hook and the filters.

A client says who it is in a cookie, ``login=7``. It holds the label ``user:7``, and the filter ``odd`` permits odd numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http.cookies import SimpleCookie
from typing import Any

import pgbus_gevent
from pgbus_gevent.core.filters import Filters

ROOM = "chaos:room"
"""The stream whose members are tracked."""

filters = Filters()
filters.register("odd", lambda user, stream: isinstance(user, int) and user % 2 == 1)


def authorize(environ: dict[str, Any], stream: str) -> pgbus_gevent.Subscriber | bool:
    """Let everybody in who has a login."""
    cookie = SimpleCookie(environ.get("HTTP_COOKIE", "")).get("login")
    if cookie is None:
        return False
    user = int(cookie.value)
    member = f"member-{user}" if stream == ROOM else None
    return pgbus_gevent.Subscriber(owner=f"owner-{user}", context=user, labels={f"user:{user}"}, member=member)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer every request that is not for a stream."""
    start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "0")])
    return [b""]


def entitled(user: int, label: str | None) -> bool:
    """Return whether a client with this login may see a message that is visible to ``label``. Written apart from the product."""
    if label is None:
        return True
    return user % 2 == 1 if label == "odd" else label == f"user:{user}"
