"""``descriptors``: requests take every descriptor of the server, while a client that was there before gets messages."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from .target import site, until
from .witness import Reader, Watch, gets_in


def descriptors(
    limit: int = 300, seconds: float = 10.0, rate: float = 10.0, database_url: str | None = None
) -> dict[str, Any]:
    """Hold requests of the application at a server with ``limit`` descriptors for ``seconds``."""
    with site(database_url=database_url, limit=limit) as target:
        served = target.front
        reader = Reader(served, "ordinary")
        until(lambda: reader.connected, 20, "the first client is served")
        held = []
        for _ in range(limit + 100):
            sock = served.connect()
            sock.sendall(f"GET /held?{seconds + 5:g} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
            held.append(sock)
        until(lambda: "cannot accept" in served.errors, 20, "no descriptor is left")
        watch, began = Watch(served), time.monotonic()
        published = 0
        while time.monotonic() - began < seconds:
            target.query("select pgbus.broadcast('ordinary', 'still there')")
            published += 1
            time.sleep(1 / rate)
        until(lambda: len(reader.ids) == published, 20, "the client has every message")
        seen = watch.end()
        held[0].settimeout(60)
        held[0].recv(100)  # the first of the requests is over
        freed = time.monotonic()
        until(lambda: gets_in(served) is not None, 60, "clients are served again")
        recovered = time.monotonic() - freed
        for sock in held:
            sock.close()
        lines = served.errors.count("cannot accept")
        reader.end()
        with suppress(OSError):
            status = served.ask("/pgbus/readyz")[0]
    return {
        "limit": limit, "seconds": seconds, "published": published, "received": len(reader.ids),
        "cpu_share": round(seen["cpu_s"] / seconds, 3), "descriptors_most": seen["descriptors_most"],
        "served_again_after_s": round(recovered, 2), "log_lines": lines, "ready": status,
    }  # fmt: skip


def is_broken(report: dict[str, Any]) -> bool:
    """Whether messages were missing, or the log was flooded."""
    return report["received"] != report["published"] or report["log_lines"] > 2 or report["ready"] != 200
