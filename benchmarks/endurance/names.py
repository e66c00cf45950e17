"""``names``: floods of stream names that are never used again, watched, asked for, refused and published to."""

from __future__ import annotations

import http.client
import socket
import time
from collections import Counter
from typing import Any

from pgbus_gevent import Bus

from .target import SECRET, Served, Site, site, until
from .witness import Watch, gets_in, mb, request

STREAMS_EACH = 32
"""The most streams of one connection."""


def names(
    count: int = 100_000, watched: int = 2000, edge: bool = False, database_url: str | None = None, say: Any = print
) -> dict[str, Any]:
    """Ask for ``count`` names in each way over HTTP, publish to ten times as many, and watch 32 on each of ``watched``."""
    with site(
        database_url=database_url, edge=edge, ring_messages="100", max_connections=str(watched + 100), public="open:*"
    ) as target:
        served = target.front
        _ask(served, max(200, count // 20))
        gets_in(served, "open:first")
        watch = Watch(served)
        steps = {"at first": mb(served.rss)}
        asked = _ask(served, count)
        steps["asked"] = mb(served.rss)
        say(f"asked: {dict(asked)}", flush=True)
        _publish(target, count * 10)
        steps["published"] = mb(served.rss)
        say("published", flush=True)
        of_streams, most_streams = _watch_many(served, watched)
        until(lambda: served.metric("pgbus_connections") == 0, 60, "no stream is watched")
        steps["watched and left"] = mb(served.rss)
        of_again, _ = _watch_many(served, watched)
        until(lambda: served.metric("pgbus_connections") == 0, 60, "no stream is watched")
        steps["watched and left again"] = mb(served.rss)
        log, ordinary = len(served.errors), gets_in(served, "open:last")
        found = watch.end()
    return {
        "names_asked": count, "answers": dict(asked), "names_published": count * 10, "edge": edge,
        "streams_watched_at_once": most_streams, "bytes_for_each_watched_stream": round(max(of_streams, of_again)),
        "memory_mb": steps, "log_bytes": log, "ordinary_client_s": ordinary, **found,
    }  # fmt: skip


def _ask(served: Served, count: int) -> Counter[str]:
    """Ask for names over one connection after the other, each of which carries many requests."""
    bus = Bus(settings=None, database_url="postgresql:///unused", secret=SECRET, migrate=False)
    other = Bus(settings=None, database_url="postgresql:///unused", secret="another secret of sixteen", migrate=False)
    ways = [
        ("HEAD", lambda n: f"/pgbus/streams/open:{n}"),
        ("GET", lambda n: f"/pgbus/streams/not-public-{n}"),
        ("HEAD", lambda n: f"/pgbus/streams/{bus.sign(f'signed-{n}')}"),
        ("GET", lambda n: f"/pgbus/streams/{other.sign(f'forged-{n}')}"),
        ("HEAD", lambda n: f"/pgbus/streams/{bus.sign(f'secret-{n}')}"),
        ("GET", lambda n: f"/pgbus/{n}"),
        ("POST", lambda n: f"/pgbus/streams/posted-{n}"),
    ]
    found: Counter[str] = Counter()
    connection: http.client.HTTPConnection | None = None
    for number in range(count):
        method, path = ways[number % len(ways)]
        connection = connection or http.client.HTTPConnection(served.host, served.port, timeout=20)
        try:
            connection.request(method, path(f"{count}-{number}"), b"x" if method == "POST" else None)
            answer = connection.getresponse()
            answer.read()
            found[f"{method} {answer.status}"] += 1
            closes = answer.will_close
        except (OSError, http.client.HTTPException) as error:
            found[type(error).__name__] += 1
            closes = True
        if closes:
            connection.close()
            connection = None
    return found


def _publish(target: Site, count: int) -> None:
    """Publish to names that nobody watches, some ten thousand in a transaction."""
    for start in range(0, count, 10_000):
        end = min(count, start + 10_000)
        target.query(
            f"select pgbus.broadcast('flood:{time.time_ns()}:' || n, 'x') from generate_series({start}, {end - 1}) n"
        )


def _watch_many(served: Served, connections: int) -> tuple[float, int]:
    """Watch as many streams at once as ``connections`` may. Return the memory for each in bytes, and how many there were."""
    before, mark = served.rss, time.time_ns()
    socks = []
    for number in range(connections):
        sock = served.connect()
        query = "&".join(f"stream=open:{mark}:{number}:{n}" for n in range(STREAMS_EACH))
        sock.sendall(request(f"/pgbus/streams?{query}"))
        socks.append(sock)
        if number % 50 == 49 or number == connections - 1:
            until(lambda: all(map(_greeted, socks[-50:])), 120, "the streams are watched", pause=0.05)
    streams = int(served.metric("pgbus_connections")) * STREAMS_EACH
    each = (served.rss - before) / max(1, streams)
    for sock in socks:
        sock.close()
    return each, streams


def _greeted(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


def is_broken(report: dict[str, Any]) -> bool:
    """Whether memory grew with the names, the log was flooded, or an ordinary client was kept out."""
    memory = report["memory_mb"]
    kept = memory["watched and left again"] - memory["watched and left"]
    return (
        memory["published"] - memory["at first"] > 20
        or kept > 20
        or report["log_bytes"] > 100_000
        or report["ordinary_client_s"] is None
    )
