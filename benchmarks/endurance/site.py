"""The application beside the streams: ``/census`` answers with what its process holds, and ``/trimmed`` does so after it has given
back what it can. Its hook names owners and labels.

With ``PGBUS_ENDURANCE_PLANT`` in the environment, each authorized request leaks one of the named things, so that a test can show
that the benchmark finds them.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import gevent

from pgbus_gevent import Subscriber
from pgbus_gevent.core.filters import Filters
from pgbus_gevent.streamer.instance import instances

from . import heap
from .census import census

filters = Filters()
filters.register("admins", lambda context, stream: context == "admin")

_LEAKED: list[Any] = []


def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Answer ``/census`` and ``/trimmed`` as JSON, hold ``/held`` for a while, and greet everywhere else."""
    path = environ.get("PATH_INFO")
    if path == "/held":
        gevent.sleep(float(environ.get("QUERY_STRING") or 5))
    if path == "/trimmed":
        gc.collect()
        heap.trim()
    body = json.dumps(census()).encode() if path in ("/census", "/trimmed") else b"hello\n"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def authorize(environ: dict[str, Any], stream: str) -> Any:
    """Refuse streams that begin with ``secret``. The query's ``user`` is the owner, the member, and holds a label of its own."""
    for name in filter(None, os.environ.get("PGBUS_ENDURANCE_PLANT", "").split(",")):
        _PLANTS[name]()
    if stream.startswith("secret"):
        return False
    user = parse_qs(environ.get("QUERY_STRING", "")).get("user", [None])[0]
    if user is None:
        return True
    return Subscriber(
        owner=user, context="admin" if user.endswith("0") else "user", member=user, labels={f"for-{user}"}
    )


def _leak_item() -> None:
    clients: Any = instances()[0].clients
    clients.planted = [*getattr(clients, "planted", ()), object()]


_PLANTS: dict[str, Callable[[], object]] = {
    "item": _leak_item,
    "object": lambda: _LEAKED.extend([] for _ in range(100)),
    "descriptor": lambda: os.open("/dev/null", os.O_RDONLY),
    "greenlet": lambda: gevent.spawn(gevent.sleep, 10_000),
}
