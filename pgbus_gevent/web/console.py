"""The operators' page: what this worker does, as it does it. Costs nothing while nobody looks."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from time import monotonic, time
from typing import Any

import gevent

from ..core import sse
from ..core.names import check_name
from ..errors import DatabaseError, InvalidArgument
from ..streamer.instance import Instance
from . import process, requests
from .metrics import Metrics
from .operators import COOKIE, Operators
from .recent_warnings import RecentWarnings
from .responses import Answer, Environ, Flow, Headers, Refused, json_answer, stream_headers, text
from .tables import CONNECTION_COLUMNS, STREAM_COLUMNS, Tables, Wanted

logger = logging.getLogger("pgbus_gevent.console")

WATCHERS = 16
"""How many may look at the same time; each costs a greenlet."""

HISTORY = 60
"""Points of the past that the page begins with, one each time that the worker tells of itself: five minutes."""

_EVERY = 1.0  # seconds between two snapshots
_SLOWLY = 5  # snapshots between two looks at what changes slowly, or costs something
_LOOK = 0.25  # seconds: how late the feed sees that the worker drains
_FLEET_TIMEOUT = 1.0
_MAX_FORM = 4096
_STATIC = Path(__file__).with_name("static")

_POLICY: Headers = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
        " form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
]
_FILES = {
    "console.js": "text/javascript; charset=utf-8",
    "login.js": "text/javascript; charset=utf-8",
    "console.css": "text/css; charset=utf-8",
}
_READ = ("GET", "HEAD")

View = Callable[[Environ], "Answer | Flow"]


class Console:
    """The page, its feed, its tables, and what an operator can do, of one worker."""

    def __init__(
        self,
        instance: Instance,
        metrics: Metrics,
        operators: Operators,
        warnings: RecentWarnings,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._instance = instance
        self._metrics = metrics
        self._roll_call = instance.roll_call
        self._operators = operators
        self._warnings = warnings
        self._clock = clock
        self._tables = Tables(instance.board, clock)
        self._history: deque[dict[str, Any]] = deque(maxlen=HISTORY)
        self._watchers = 0
        self.routes: dict[str, tuple[tuple[str, ...], View]] = {
            "/console": (_READ, self._page),
            "/console/": (_READ, lambda environ: Answer(308, b"", [("location", "../console")])),
            **{f"/console/{name}": (_READ, partial(_file, name, kind)) for name, kind in _FILES.items()},
            "/console/feed": (_READ, self._feed),
            "/console/streams": (_READ, self._streams),
            "/console/connections": (_READ, self._connections),
            "/console/retained": (_READ, self._retained),
            "/console/kick": (("POST",), self._kick),
            "/console/login": (("POST",), self._login),
            "/console/logout": (("POST",), lambda environ: self._operators.logout(environ)),
        }

    # the page

    def _page(self, environ: Environ) -> Answer:
        token = requests.single(requests.parse_query(environ), "token")
        try:
            if token is not None:
                return self._operators.follow_link(environ, token)
            self._operators.check(environ)
        except Refused as refused:
            if refused.answer.status != 401 or "text/html" not in str(environ.get("HTTP_ACCEPT", "")):
                raise
            return _html("console-login.html", 401)
        return _html("console.html", 200)

    def _login(self, environ: Environ) -> Answer:
        return self._operators.login(environ, _form(environ, self._instance))

    # the feed

    def _feed(self, environ: Environ) -> Answer | Flow:
        self._operators.check(environ)
        asked = requests.single(requests.parse_query(environ), "worker")
        if self._instance.draining or self._watchers >= WATCHERS:
            return Flow(stream_headers(environ), lambda: [sse.retry(5.0) + b"\n"])
        if asked and asked != self._roll_call.id:
            # All workers are behind one port: the page comes back until it gets to the one that it wants.
            return Flow(stream_headers(environ), lambda: [_frame("elsewhere", {"worker": self._roll_call.id})])
        bearer = requests.bearer(environ)
        cookie = requests.cookie(environ, COOKIE) if bearer is None else None
        return Flow(stream_headers(environ), partial(self._frames, cookie))

    def _frames(self, cookie: str | None) -> Iterator[bytes]:
        self._watchers += 1
        number = -1
        try:
            yield sse.retry(2.0) + _frame("hello", self._hello())
            for n in range(2**62):
                if n % _SLOWLY == 0:
                    if n and cookie is not None and not self._operators.holds(cookie):
                        return  # it was logged out, perhaps at another worker
                    yield _frame("slow", self._slow())
                if self._warnings.number != number:
                    number = self._warnings.number
                    yield _frame("warnings", [warned._asdict() for warned in self._warnings.newest()])
                yield _frame("now", self._now())
                ending = self._clock() + _EVERY
                while (left := ending - self._clock()) > 0:
                    gevent.sleep(min(left, _LOOK))
                    if self._instance.draining:
                        return
        finally:
            self._watchers -= 1

    def note(self) -> None:
        """Keep a point of the past; called every few seconds, whether anybody looks or not."""
        self._history.append(self._now())

    def _hello(self) -> dict[str, Any]:
        settings = self._instance.settings
        return {
            "worker": self._roll_call.id,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "version": process.release(),
            "started": self._roll_call.started_at,
            "max": self._instance.clients.most,
            "listen": settings.listen,
            "guarded": self._operators.has_token,
            "bounds": {"passes": self._metrics.passes.bounds, "latency": self._metrics.latency.bounds},
            "history": list(self._history),
        }

    def _now(self) -> dict[str, Any]:
        instance, total = self._instance, self._instance.counter.total
        return {
            "at": time(),
            "messages": total.broadcasts,
            "sends": instance.dispatcher.sends,
            "opened": total.total_connections,
            "connections": total.active_connections,
            "streams": len(instance.counter.streams),
            "passes": self._metrics.passes.counts,
            "latency": self._metrics.latency.counts,
            "unready": instance.unready,
            "listening": instance.listener.live,
            "losses": instance.listener.reconnects,
            "pool": [instance.database.pool.in_use, instance.database.pool.size],
            "ring": [instance.board.budget.used, instance.board.budget.limit],
        }

    def _slow(self) -> dict[str, Any]:
        """The other workers, and what the kernel tells of this one."""
        cpu = os.times()
        found: dict[str, Any] = {
            "cpu": cpu.user + cpu.system,
            "memory": process.resident_bytes(),
            "descriptors": process.open_descriptors(),
            "offset": self._roll_call.clock_offset,
            "fleet": None,
            "answered": None,
            "trouble": "no answer",
        }
        began = self._clock()
        workers = None
        try:
            with gevent.Timeout(_FLEET_TIMEOUT, False):  # type: ignore[arg-type]  # False: without an exception
                workers = self._instance.database.fleet.workers()
        except DatabaseError as error:
            found["trouble"] = str(error)
        if workers is not None:
            found["trouble"] = None
            found["answered"] = self._clock() - began
            found["fleet"] = [
                {
                    "id": worker.id,
                    "host": worker.host,
                    "pid": worker.pid,
                    "age": worker.age,
                    "silent": worker.silent,
                    **{name: worker.facts.get(name) for name in ("connections", "streams", "messages", "unready")},
                }
                for worker in workers
            ]
        return found

    # the tables

    def _streams(self, environ: Environ) -> Answer:
        query = self._asked(environ)
        return self._table(self._tables.streams(_wanted(query, STREAM_COLUMNS)))

    def _connections(self, environ: Environ) -> Answer:
        query = self._asked(environ)
        return self._table(self._tables.connections(_wanted(query, CONNECTION_COLUMNS)))

    def _table(self, found: dict[str, Any]) -> Answer:
        return json_answer(200, {"worker": self._roll_call.id, **found}, *_POLICY)

    def _retained(self, environ: Environ) -> Answer:
        """How many messages of a stream are kept; up to a limit, as each has to be counted."""
        query = self._asked(environ)
        stream = requests.single(query, "stream")
        if not stream:
            raise Refused(text(400, "which stream?"))
        try:
            count = self._instance.database.fleet.retained(check_name(stream))
        except InvalidArgument as error:
            raise Refused(text(400, str(error))) from None
        except DatabaseError as error:
            logger.info("the console cannot count messages: %s", error)
            raise Refused(text(503, "the database does not answer now")) from None
        return json_answer(200, {"stream": stream, **count})

    def _asked(self, environ: Environ) -> requests.Query:
        """The query of an operator who means this worker."""
        self._operators.check(environ)
        query = requests.parse_query(environ)
        self._expect(requests.single(query, "worker"), environ)
        return query

    def _expect(self, worker: str | None, environ: Environ) -> None:
        if worker and worker != self._roll_call.id:
            own = str(environ.get("SERVER_SOFTWARE", "")).startswith("gevent/")
            # RFC 9110, section 15.5.20: the client may try again, on another connection.
            raise Refused(text(421, "that is another worker", *([("connection", "close")] if own else [])))

    # what an operator can do

    def _kick(self, environ: Environ) -> Answer:
        self._operators.check_post(environ)
        form = requests.parse_form(_form(environ, self._instance))
        self._expect(form.get("worker", ""), environ)
        client = self._instance.registry.client(form.get("connection", ""))
        if client is None:
            return text(404, "there is no such connection here: it has ended, or is another worker's")
        self._instance.clients.end(client, "revoked")
        logger.info("an operator has ended connection %s", client.id)
        return json_answer(200, {"ended": client.id})


def _form(environ: Environ, instance: Instance) -> str:
    return requests.read_body(environ, limit=_MAX_FORM, timeout=instance.settings.request_timeout)


def _wanted(query: requests.Query, columns: tuple[str, ...]) -> Wanted:
    sort = requests.single(query, "sort") or columns[0]
    page = requests.single(query, "page") or "0"
    if sort not in columns:
        raise Refused(text(400, f"sort is one of {', '.join(columns)}"))
    if not (page.isascii() and page.isdigit() and len(page) < 10):
        raise Refused(text(400, "page is a number from 0"))
    down = requests.single(query, "order") == "down"
    return Wanted(sort, down, requests.single(query, "text") or "", int(page))


def _frame(event: str, value: Any) -> bytes:
    return sse.message(json.dumps(value, separators=(",", ":")), event=event)


def _html(name: str, status: int) -> Answer:
    body, _ = _read(name)
    return Answer(status, body, [("content-type", "text/html; charset=utf-8"), ("cache-control", "no-store"), *_POLICY])


def _file(name: str, kind: str, environ: Environ) -> Answer:
    body, etag = _read(name)
    headers = [("etag", etag), ("cache-control", "no-cache"), *_POLICY]
    if environ.get("HTTP_IF_NONE_MATCH") == etag:
        return Answer(304, b"", headers)
    return Answer(200, body, [("content-type", kind), *headers])


@cache
def _read(name: str) -> tuple[bytes, str]:
    body = _STATIC.joinpath(name).read_bytes()
    return body, f'"{sha256(body).hexdigest()[:32]}"'
