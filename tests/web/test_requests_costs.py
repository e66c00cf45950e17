"""No request costs more than its size warrants: a fuzz over every route and header that times each answer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from time import process_time
from typing import Any

import pytest
from raw_http import connected
from site_parts import PUBLISH_TOKEN, Site, running_site
from support import until

from pgbus_gevent.testing.databases import TestDatabases
from pgbus_gevent.web.backstage import backstage_of
from pgbus_gevent.web.stream_app import StreamApp

OPERATOR = "operator-token-of-the-site"
ORIGIN = "https://shop.example"
SIZE = 30_000
ALLOWED = 0.04
"""Seconds of CPU, of client and server together: four times what any took when this was written, on a slow machine."""

HEADERS = (
    "Host", "Origin", "Accept", "Authorization", "Cookie", "Last-Event-ID", "If-None-Match", "Range", "Content-Type", "Referer",
    "X-Forwarded-For", "X-Forwarded-Proto", "Forwarded", "Sec-Fetch-Site", "Access-Control-Request-Headers", "User-Agent",
    "Accept-Encoding", "If-Modified-Since", "Expect", "TE", "Connection", "Upgrade", "Content-Encoding", "Trailer", "X",
)  # fmt: skip
ATOMS = (
    *" \t,;:='\"\\()[]{}<>/?@%&*~.-_019aAzZ\xe9\xff", "%41", "%00", "%25", "%22", "WyI",
    "Wy", ".eJ", "eJ", "a=", "a;", "Bearer ", "bytes=",
    'W/"', "http://", "::", "1~", "1.", "close,", "q=0.1", "pgbus_console=", "stream=", "since=", "&stream=demo:a", "lastEventId=",
    "identity", "connection=0", "token=", "text/event-stream,",
)  # fmt: skip


@pytest.fixture(scope="module")
def site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    url = pgbus_databases.make()
    with running_site(
        url, operator_token=OPERATOR, cors_origins=(ORIGIN,), request_timeout=10.0, max_body=SIZE
    ) as site:
        site.app = StreamApp(site.instance, lambda environ, stream: True)
        yield site


def many(rng: random.Random, size: int) -> str:
    """Return some pieces, repeated many times."""
    unit = "".join(rng.choice(ATOMS) for _ in range(rng.randrange(1, 4)))
    return rng.choice(("", "", '"', "[", "a")) + (unit * size)[:size] + rng.choice(("", "", '"', "x", "]", "!"))


def large_request(rng: random.Random, routes: list[str]) -> bytes:
    """Return a request with one large part, chosen at random."""
    method, target = rng.choice(("GET", "GET", "HEAD", "POST", "OPTIONS")), f"/pgbus{rng.choice(routes)}"
    fields, body = {"Host": "t", "Connection": "close"}, b""
    if rng.random() < 0.5:
        fields["Authorization"] = f"Bearer {rng.choice((OPERATOR, PUBLISH_TOKEN))}"
    if rng.random() < 0.3:
        fields |= {"Origin": ORIGIN, "Accept": "text/event-stream"}
    where = rng.random()
    if where < 0.5:
        fields[rng.choice(HEADERS)] = many(rng, SIZE)
    elif where < 0.9:
        target += (rng.choice("?/") + many(rng, SIZE)).translate(str.maketrans(" \t", "++"))
    else:
        method, body = "POST", many(rng, 4000 if "console" in target else SIZE - 2).encode("latin-1")
    if method == "POST":
        fields["Content-Length"] = str(len(body))
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body


def cost(site: Site, request: bytes) -> float:
    """Return seconds of CPU: the least of several runs, so that other work on the machine does not count."""
    least = 1.0
    for _ in range(5):
        began = process_time()
        with connected(site.port, request) as sock:
            sock.settimeout(20)
            try:
                assert not sock.recv(65536).startswith(b"HTTP/1.1 500")
            except ConnectionResetError:
                pass
        least = min(least, process_time() - began)
        if least < ALLOWED:
            break
    return least


@pytest.mark.parametrize("seed", range(3))
def test_no_large_request_takes_long(seed: int, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgbus_gevent.hosts.pywsgi.LINGER", 0.0)
    monkeypatch.setattr("pgbus_gevent.web.operators._WRONG_TOKEN_PAUSE", 0.0)
    rng = random.Random(seed)
    routes = ["/streams", "/streams/demo:x", "/streams/", "/healthz", "/readyz", "/pgbus.js", "/nothing", ""]
    backstage = backstage_of(site.instance)
    routes += [*backstage.routes, *dict.fromkeys(route.rule for route in backstage.console.app.routes)]
    for _ in range(300):
        request = large_request(rng, routes)
        taken = cost(site, request)
        assert taken < ALLOWED, (taken, request[:200], request[-60:])
    # The console's feed notices that its client has left when it writes again, a second or two later.
    watched: Any = backstage.feed
    until(lambda: watched._watchers == 0, "the feeds that were asked for have ended")
