"""The checks of ``doctor URL``: each tries one thing on the real path, through whatever stands in front of the server.

They open streams, publish to a stream of their own, and compare what comes with what the server sends. The order matters: what an
early check finds explains what a later one sees.
"""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Callable, Iterator
from functools import partial
from http.client import HTTPException
from time import monotonic
from typing import Any

import gevent

from ..errors import DatabaseError
from .finding import FAIL, OK, SKIP, WARN, Finding
from .path_client import EVENTS, Address, Reply, Stream, json_object
from .path_idle import idle
from .path_remedies import fronts_in, remedy

Publish = Callable[[str], object]
"""Publishes a message with these data to the stream that is watched. Raises DatabaseError."""

PATIENCE = 10.0
"""Seconds after which what has not come counts as missing."""

AT_ONCE = 5.0
"""Seconds within which the first frame comes if nothing holds it back."""

_MESSAGES = 5
_SLOW = 1.0  # seconds from the commit to the arrival; more is a warning
_CORKED = 0.15  # seconds; Linux waits 200 ms for a full packet if a program says that more will come (MSG_MORE)
_PIECE, _PIECES = 16 * 1024, 40  # messages that push what a buffer holds
_UNKNOWN_NAME = (
    "give this command the server's secret in PGBUS_SECRET, or the name of a stream that may be read by --stream"
)


class PathChecks:
    """The checks of one address, with the signed or public name ``token`` of a stream.

    Without ``publish``, only what a reader can see is checked. ``watch`` is how long, in seconds, a quiet connection is watched;
    None for three heartbeats, 0 for not at all. :meth:`findings` yields until a check shows that the rest cannot be tried.
    """

    def __init__(self, address: Address, token: str, publish: Publish | None, watch: float | None = None) -> None:
        self._address = address
        self._path = f"/streams/{token}"
        self._publish = publish
        self._watch = watch
        self._fronts: dict[str, str] = {}
        self._connection_ids: list[str] = []

    def findings(self) -> Iterator[Finding]:
        """Run the checks, and yield what they find."""
        try:
            protocol = self._address.protocol()
            health, ready = self._address.ask("/healthz"), self._address.ask("/readyz")
        except (OSError, HTTPException) as error:
            yield self._unreachable(error)
            return
        self._fronts = fronts_in(health.headers, self._address.ask_nonsense())
        yield self._front()
        server = self._server(health, ready)
        yield server
        yield self._protocol(protocol)
        if server.level == FAIL:
            return
        requests = list(self._requests())
        yield from requests
        if any(found.check == "stream" for found in requests):
            return
        with Stream(self._address, self._path) as stream:
            opened = list(self._opened(stream))
            yield from opened
            if any(found.level == FAIL for found in opened):
                return
            yield from self._deliveries(stream)
            last = stream.messages[-1].id if stream.messages else None
        yield from self._replay(last)
        yield self._cache()
        yield from idle(self._address, self._path, self._watch, self._fronts)

    # before the stream

    def _unreachable(self, error: Exception) -> Finding:
        if isinstance(error, ssl.SSLCertVerificationError):
            todo = "install a certificate for this name; if its authority is your own, give its file in SSL_CERT_FILE"
            return Finding("address", FAIL, f"the certificate is not valid: {error.verify_message}", todo)
        text = f"there is no answer: {error or type(error).__name__}"
        return Finding("address", FAIL, text, "check the URL, the name, the firewall, and that the server runs")

    def _front(self) -> Finding:
        if not self._fronts:
            return Finding("front", OK, "nothing shows itself in front of the server")
        return Finding("front", OK, "; ".join(f"{front} ({sign})" for front, sign in self._fronts.items()))

    def _server(self, health: Reply, ready: Reply) -> Finding:
        if 300 <= health.status < 400:
            location = health.headers.get("location", "another address")
            return Finding("server", FAIL, f"this address redirects to {location}", "give the address that it leads to")
        if health.status not in (200, 503) or not _is_health(health.body):
            text = f"{self._address.mount}/healthz is not answered by pgbus-gevent: status {health.status}, {health.line!r}"
            return Finding(
                "server", FAIL, text, self._remedy("path", "the path must arrive unchanged, with the prefix")
            )
        if ready.status != 200:
            text = f"the server takes no new clients now: {ready.line}"
            return Finding("server", FAIL, text, "read docs/serving.md, and run `pgbus-gevent doctor` without a URL")
        return Finding("server", OK, f"pgbus-gevent answers, in {health.seconds * 1000:.0f} ms, and takes clients")

    def _protocol(self, protocol: str | None) -> Finding:
        six = "over which a browser opens at most six connections to one origin, for all tabs together"
        if protocol == "h2":
            return Finding("http", OK, "browsers get HTTP/2: all streams of all tabs share one connection")
        if protocol is None:
            text = f"without TLS, browsers speak HTTP/1.1, {six}"
            return Finding("http", WARN, text, self._remedy("http", "browsers speak HTTP/2 over TLS only"))
        return Finding("http", WARN, f"browsers get HTTP/1.1, {six}", self._remedy("http"))

    def _requests(self) -> Iterator[Finding]:
        """Look whether the query and the headers arrive as they were sent."""
        mark = f"doctor-{secrets.token_hex(4)}"
        refused = self._ask("?since=doctor")
        if isinstance(refused, Finding):
            yield refused
            return
        if refused.status != 400:
            yield self._no_query(refused)
            return
        told = self._ask("?received", {"Accept": EVENTS, "Last-Event-ID": mark})
        facts = _facts(told)
        if isinstance(told, Reply) and told.status == 403:
            yield self._no_query(told)
            return
        if facts is None:
            yield Finding("query", OK, "the query arrives")
            yield Finding(
                "headers", SKIP, "the server's release does not say which headers arrive", "upgrade the server"
            )
            return
        yield Finding("query", OK, "the query arrives")
        sent = {"Last-Event-ID": (facts["lastEventId"], mark), "Accept": (facts["accept"], EVENTS)}
        lost = [
            f"{name} arrives as {got!r}" if got else f"{name} does not arrive"
            for name, (got, value) in sent.items()
            if got != value
        ]
        if lost:
            yield Finding("headers", FAIL, ", and ".join(lost), self._remedy("headers"))
        else:
            yield Finding("headers", OK, "Last-Event-ID and Accept arrive")
        if facts["protocol"] == "HTTP/1.0":
            text = "requests arrive as HTTP/1.0, so a stream that is cut off looks like one that has ended"
            yield Finding("upstream", WARN, text, self._remedy("upstream"))
        else:
            yield Finding("upstream", OK, f"requests arrive as {facts['protocol']}")

    def _no_query(self, reply: Reply) -> Finding:
        if reply.status == 404 and "no such stream" in reply.body:
            return Finding("stream", FAIL, f"404: {reply.line}", _UNKNOWN_NAME)
        if reply.status == 403:
            todo = "give a name that is valid by --stream, and what the authorize hook needs by --header"
            return Finding("stream", FAIL, f"403: {reply.line}", todo)
        if reply.status == 200 and reply.headers.get("content-type", "").startswith(EVENTS):
            text = "the query does not arrive: `since=doctor` was not refused"
            return Finding("query", FAIL, text, self._remedy("query"))
        text = f"{self._address.mount}/streams is not answered by pgbus-gevent: status {reply.status}, {reply.line!r}"
        return Finding("stream", FAIL, text, self._remedy("path"))

    def _ask(self, query: str, headers: dict[str, str] | None = None) -> Reply | Finding:
        try:
            return self._address.ask(self._path + query, headers or {"Accept": EVENTS})
        except (OSError, HTTPException) as error:
            text = f"{self._address.mount}/streams does not answer: {error or type(error).__name__}"
            return Finding("stream", FAIL, text, "look into the logs of the server and of what stands in front")

    # the stream

    def _opened(self, stream: Stream) -> Iterator[Finding]:
        """Wait for the first frame, and judge the head of the answer."""
        stream.wait(lambda: stream.frames or stream.is_other, AT_ONCE if self._publish else PATIENCE)
        if not stream.frames and not stream.is_other and stream.ended is None:
            yield self._held_back(stream)
            return
        if not stream.is_stream:
            stream.wait(lambda: stream.body, 1.0)
            yield Finding("stream", FAIL, f"no event stream but {_described(stream)}", self._remedy("path"))
            return
        refused = stream.control("shutdown")
        greeted = stream.control("connected")
        if greeted is None:
            reason = refused.get("reason") if refused else stream.cause or "it ended"
            yield Finding(
                "stream", FAIL, f"the server does not take this client: {reason}", "read docs/streams.md, Statuses"
            )
            return
        self._connection_ids += filter(None, [greeted.get("connectionId")])
        first = (stream.first_byte or 0.0) - stream.began
        yield Finding("stream", OK, f"the first byte comes after {first * 1000:.0f} ms")
        yield from self._head(stream)

    def _held_back(self, stream: Stream) -> Finding:
        """Push with messages what may wait in a buffer: this tells a buffer from a server that does not answer."""
        waited, pushed = monotonic() - stream.began, 0
        for _ in range(_PIECES if self._publish else 0):
            if stream.first_byte is not None or self._try_to_publish(secrets.token_hex(_PIECE // 2)) is not None:
                break
            pushed += _PIECE
            gevent.sleep(0.05)
        stream.wait(lambda: stream.first_byte is not None, 1.0 if pushed else 0.0)
        text = f"no byte of the stream came within {waited:.0f} s"
        if stream.first_byte is not None:
            text += f"; it came when {pushed // 1024} kB more had been published, so a buffer holds frames back"
        else:
            text += f", nor after {pushed // 1024} kB of messages" if pushed else ", although the server sends at once"
        return Finding("buffering", FAIL, text, self._remedy("buffering"))

    def _head(self, stream: Stream) -> Iterator[Finding]:
        coding = stream.headers.get("content-encoding", "identity")
        if coding != "identity":
            text = f"the stream is compressed ({coding}), which the server does not do: it takes memory for each connection, and"
            yield Finding("compression", WARN, f"{text} may hold frames back", self._remedy("compression"))
        else:
            yield Finding("compression", OK, "the stream is not compressed")
        control = stream.headers.get("cache-control", "")
        if "no-cache" in control and "no-transform" in control:
            yield Finding("answer", OK, "the headers of the answer arrive")
        else:
            text = f"the answer has cache-control: {control!r}, instead of no-cache, no-transform"
            yield Finding(
                "answer", WARN, text, "let the header pass as the server sends it: it keeps caches and CDNs away"
            )

    # messages

    def _deliveries(self, stream: Stream) -> Iterator[Finding]:
        if self._publish is None:
            for check in ("delivery", "replay"):
                yield Finding(check, SKIP, "not tried, because --stream is given: nothing is published to your streams")
            return
        took: list[float] = []
        for _ in range(_MESSAGES):
            data = secrets.token_hex(16)
            failed, committed = self._try_to_publish(data), monotonic()
            if failed is not None:
                yield failed
                return
            stream.wait(partial(stream.arrival, data), PATIENCE)
            arrived = stream.arrival(data)
            if arrived is None:
                yield self._not_delivered(stream)
                return
            took.append(max(0.0, arrived - committed))
        texts = [frame.data for frame in stream.messages]
        if len(texts) > len(set(texts)):
            todo = "look for something that repeats answers: only a connection that breaks within a frame may repeat one message"
            yield Finding("delivery", FAIL, "a message came twice on one connection", todo)
            return
        middle, longest = sorted(took)[len(took) // 2] * 1000, max(took) * 1000
        text = f"{len(took)} messages arrive {middle:.0f} ms after the commit, the slowest {longest:.0f} ms after it"
        if longest > _SLOW * 1000:
            todo = self._remedy("buffering", "run `pgbus-gevent doctor` without a URL (listen, database)")
            yield Finding("delivery", WARN, text, todo)
        elif min(took) > _CORKED:
            text += f", and none within {_CORKED * 1000:.0f} ms, as if something waited for more bytes"
            yield Finding("delivery", WARN, text, self._remedy("buffering"))
        else:
            yield Finding("delivery", OK, text)

    def _not_delivered(self, stream: Stream) -> Finding:
        if stream.ended is not None:
            text = f"the stream ended before a message arrived: {stream.cause or 'without a cause'}"
            return Finding("delivery", FAIL, text, "look into the logs of the server and of what stands in front")
        todo = self._remedy("buffering", "check that the database URL of this command is that of the server")
        return Finding("delivery", FAIL, f"a message did not arrive within {PATIENCE:.0f} s", todo)

    def _try_to_publish(self, data: str) -> Finding | None:
        assert self._publish is not None
        try:
            self._publish(data)
        except DatabaseError as error:
            return Finding("delivery", FAIL, f"could not publish: {error}", "run `pgbus-gevent doctor` without a URL")
        return None

    def _replay(self, last: str | None) -> Iterator[Finding]:
        """Come back with a cursor, at the same URL, as an EventSource does."""
        if self._publish is None or last is None:
            return
        missed = [secrets.token_hex(16) for _ in range(2)]
        failed = next(filter(None, map(self._try_to_publish, missed)), None)
        if failed is not None:
            yield failed
            return
        with Stream(self._address, self._path, {"Last-Event-ID": last}) as stream:
            stream.wait(lambda: len(stream.messages) >= len(missed), PATIENCE)
            gevent.sleep(0.2)  # for a message too many
            got, greeted = [frame.data for frame in stream.messages], stream.control("connected")
        if greeted is not None:
            self._connection_ids += filter(None, [greeted.get("connectionId")])
        if got == missed:
            yield Finding("replay", OK, "a client that comes back gets exactly what it missed, in order")
            return
        text = f"a client that came back after 2 messages got {len([data for data in got if data in missed])} of them"
        if len(got) > len(missed):
            text += f", and {len(got) - len(missed)} others"
        yield Finding(
            "replay", FAIL, text, self._remedy("headers", "Last-Event-ID must arrive, and no answer may be cached")
        )

    def _cache(self) -> Finding:
        """Two answers to the same URL must be two, whatever their headers say."""
        marks = [secrets.token_hex(4) for _ in range(2)]
        facts = [_facts(self._ask("?received", {"Accept": EVENTS, "Last-Event-ID": mark})) for mark in marks]
        told = [each["lastEventId"] for each in facts if each is not None]
        same = len(told) == 2 and None not in told and told[0] == told[1]
        if same or len(set(self._connection_ids)) < len(self._connection_ids):
            text = "an answer came from a cache: two requests got the same one"
            return Finding("cache", FAIL, text, self._remedy("cache"))
        return Finding("cache", OK, "no answer comes from a cache")

    def _remedy(self, problem: str, rule: str = "") -> str:
        return "\n".join(filter(None, (rule, remedy(problem, self._fronts))))


def _is_health(body: str) -> bool:
    facts = json_object(body)
    return "status" in facts and "parts" in facts


def _facts(reply: Reply | Finding) -> dict[str, Any] | None:
    """Return what the server says that it received, or None if it does not say."""
    facts = json_object(reply.body) if isinstance(reply, Reply) and reply.status == 200 else {}
    return facts if {"protocol", "accept", "lastEventId"} <= set(facts) else None


def _described(stream: Stream) -> str:
    if stream.status is None:
        return f"no answer: {stream.cause or 'the connection was closed'}"
    kind = stream.headers.get("content-type", "no content type")
    return f"status {stream.status}, {kind}: {stream.body.strip().partition(chr(10))[0][:120]!r}"
