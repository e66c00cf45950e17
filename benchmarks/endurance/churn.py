"""Clients and publishers that come and go at random, from a seed. They run in the process of the benchmark, as greenlets."""

from __future__ import annotations

import random
import socket
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from time import monotonic
from urllib.parse import quote

import gevent
import psycopg2

from pgbus_gevent import Bus
from pgbus_gevent.errors import PgbusError

from .target import SECRET, Site

VISITORS = 60
PUBLISHERS = 3
SHARED = 10
"""Streams that many clients share. All others have names that are never used again."""

FLOOD = 40
"""Connections that one flood opens at once."""

_RESET = struct.pack("ii", 1, 0)
_TERMINATE = """
select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()
  and application_name like 'pgbus%' order by random() limit 1
"""


class Churn:
    """Runs visitors and publishers against ``site`` until :meth:`stop`. ``counts`` says what they have done."""

    numbers = count(1)

    def __init__(self, site: Site, seed: int, *, faults: bool = True) -> None:
        self._site = site
        self._random = random.Random(seed)
        self._ends = False
        self._used: list[str] = []
        self.counts: Counter[str] = Counter()
        self._bus = Bus(site.database_url, secret=SECRET, migrate=False)
        self._greenlets = [gevent.spawn(self._repeat, self._visit, 0.0) for _ in range(VISITORS)]
        self._greenlets += [gevent.spawn(self._repeat, self._publish, 0.02) for _ in range(PUBLISHERS)]
        self._greenlets.append(gevent.spawn(self._repeat, self._flood, 3.0))
        if faults:
            self._greenlets.append(gevent.spawn(self._repeat, self._terminate, 4.0))

    def run(self, seconds: float) -> Counter[str]:
        """Let it run for ``seconds``, and then have everybody leave."""
        gevent.sleep(seconds)
        self._ends = True
        gevent.joinall(self._greenlets, timeout=60)
        gevent.killall(self._greenlets)
        self._bus.close()
        return self.counts

    def _repeat(self, act: Callable[[], None], pause: float) -> None:
        while not self._ends:
            try:
                act()
            except (OSError, PgbusError, psycopg2.Error) as error:
                self.counts[f"failed: {type(error).__name__}"] += 1
                gevent.sleep(0.05)
            gevent.sleep(pause * self._random.uniform(0.5, 1.5))

    # names

    def _name(self) -> str:
        chance = self._random.random()
        if chance < 0.3:
            return f"hot:{self._random.randrange(SHARED)}"
        if chance < 0.5 and self._used:
            return self._random.choice(self._used)
        name = f"soak:{next(Churn.numbers)}"
        self._used = [*self._used[-200:], name]
        return name

    def _user(self) -> str:
        return f"user-{self._random.randrange(30)}"

    # visitors

    def _visit(self) -> None:
        kinds = [self._watch] * 12 + [self._ask_wrongly] * 3 + [self._stall, self._say_nothing, self._look_around]
        self._random.choice(kinds)()

    def _path(self) -> str:
        draw = self._random
        streams = [self._name() for _ in range(draw.choice((1, 1, 1, 2, 5, 12)))]
        start = draw.choice(("", "", "since=0", "replay=20", "since=1700000000000000", "since=99999999999999"))
        user = draw.choice(("", f"user={self._user()}"))
        query = "&".join(filter(None, [*(f"stream={quote(name, safe='')}" for name in streams), start, user]))
        return f"/pgbus/streams?{query}"

    def _open(self, path: str, buffer: int | None = None) -> socket.socket:
        sock = self._site.front.connect(buffer=buffer)
        head = f"GET {path} HTTP/1.1\r\nHost: test\r\nAccept: text/event-stream\r\n"
        if self._random.random() < 0.2:
            head += f"Last-Event-ID: {self._random.choice(('0', 'nonsense', '1700000000000000', '1~0.0'))}\r\n"
        sock.sendall(f"{head}\r\n".encode())
        return sock

    def _leave(self, sock: socket.socket) -> None:
        if self._random.random() < 0.5:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        sock.close()

    def _watch(self) -> None:
        sock = self._open(self._path())
        self.counts["watched"] += 1
        stay = self._random.choice((None, 0.05, 0.5, 2.0))
        sock.settimeout(0.2)
        try:
            until = monotonic() + (stay or 0.0)
            while stay is not None and not self._ends:
                with suppress(TimeoutError):
                    data = sock.recv(65536)
                    if not data:
                        self.counts["sent away"] += 1
                        return
                    self.counts["bytes"] += len(data)
                if monotonic() > until:
                    return
        finally:
            self._leave(sock)

    def _stall(self) -> None:
        sock = self._open(f"/pgbus/streams?stream=hot:0&stream=hot:1&since=0&user={self._user()}", buffer=4096)
        self.counts["stalled"] += 1
        gevent.sleep(self._random.uniform(0.5, 4.0))
        self._leave(sock)

    def _say_nothing(self) -> None:
        sock = self._site.front.connect()
        self.counts["silent"] += 1
        with suppress(OSError):
            sock.sendall(
                self._random.choice((b"", b"GET / HT", b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\nA: b\r\n"))
            )
            gevent.sleep(self._random.uniform(0, 1))
        self._leave(sock)

    def _ask_wrongly(self) -> None:
        number = next(Churn.numbers)
        path, method, expected = self._random.choice(
            (
                (f"/pgbus/streams/secret-{number}", "GET", 403),
                (f"/pgbus/streams/soak:{number}?since=never", "GET", 400),
                (f"/pgbus/streams/soak:{number}", "HEAD", 200),
                (f"/pgbus/nothing-{number}", "GET", 404),
                (f"/pgbus/streams/soak:{number}", "DELETE", 405),
                (f"/application/{number}", "GET", 200),
            )
        )
        status, _ = self._site.front.ask(path, method)
        self.counts[f"answered {status}" if status != expected else "refused or answered as expected"] += 1

    def _look_around(self) -> None:
        path = self._random.choice(("/pgbus/metrics", "/pgbus/healthz", "/pgbus/readyz", "/pgbus/pgbus.js", "/"))
        self._site.front.ask(path)
        self.counts["looks"] += 1

    def _flood(self) -> None:
        path = f"/pgbus/streams/{self._name()}?user={self._user()}"
        socks = []
        with suppress(OSError):
            for _ in range(FLOOD):
                socks.append(self._open(path))
        self.counts["floods"] += 1
        gevent.sleep(0.2)
        for sock in socks:
            self._leave(sock)

    # publishers

    def _publish(self) -> None:
        kinds = [self._broadcast, self._broadcast_many, self._in_transaction, self._ephemeral, self._with_key]
        kinds += [self._coalesced, self._for_some, self._by_http, self._large, self._present]
        kind = self._random.choice(kinds)
        kind()
        self.counts["published"] += 1
        if self._random.random() < 0.02:
            self._bus.disconnect(self._user())

    def _data(self, size: int = 400) -> str:
        return "x" * self._random.randrange(1, size)

    def _broadcast(self) -> None:
        self._bus.stream(self._name()).broadcast(self._data(), event=self._random.choice((None, "changed")))

    def _broadcast_many(self) -> None:
        self._bus.stream(self._name()).broadcast_many([self._data() for _ in range(self._random.randrange(1, 40))])

    def _in_transaction(self) -> None:
        with suppress(ZeroDivisionError), self._bus.transaction() as cursor:
            for _ in range(3):
                self._bus.stream(self._name()).broadcast(self._data(), using=cursor)
            if self._random.random() < 0.3:
                raise ZeroDivisionError  # rolls the transaction back

    def _ephemeral(self) -> None:
        size = self._random.choice((100, 100, 30_000))
        self._bus.stream(self._name()).broadcast(self._data(size), ephemeral=True)

    def _with_key(self) -> None:
        stream, key = self._bus.stream(self._name()), f"key-{next(Churn.numbers)}"
        for _ in range(2):
            stream.broadcast(self._data(), key=key)

    def _coalesced(self) -> None:
        stream = self._bus.stream(self._name())
        for _ in range(10):
            stream.broadcast(self._data(), coalesce=0.05, target=f"target-{self._random.randrange(3)}")

    def _for_some(self) -> None:
        label = self._random.choice(("admins", f"for-{self._user()}", f"unknown-{next(Churn.numbers)}"))
        self._bus.stream(self._name()).broadcast(self._data(), visible_to=label)

    def _by_http(self) -> None:
        self._site.origin.ask(f"/pgbus/streams/{quote(self._name(), safe='')}", "POST", self._data().encode())

    def _large(self) -> None:
        self._bus.stream(f"hot:{self._random.randrange(2)}").broadcast(self._data(200_000))

    def _present(self) -> None:
        presence = self._bus.stream(self._name()).presence
        presence.join(self._user(), {"name": "somebody"})
        presence.leave(self._user())

    def _terminate(self) -> None:
        self._site.query(_TERMINATE)
        self.counts["backends terminated"] += 1
