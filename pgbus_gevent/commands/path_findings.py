"""The checks of ``doctor URL``: each tries one thing on the real path, through whatever stands in front of the server.

They open streams, publish to a stream of their own, and compare what comes with what the server sends. The order matters: what an
early check finds explains what a later one sees.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from functools import partial
from http.client import HTTPException
from math import inf
from time import monotonic

import gevent

from ..errors import DatabaseError
from .finding import FAIL, OK, SKIP, WARN, Finding, rounded
from .path_client import EVENTS, Address, Reply, Stream
from .path_front import FrontChecks, facts_of
from .path_idle import idle
from .path_remedies import remedies

Publish = Callable[[str], object]
"""Publishes a message with these data to the stream that is watched. Raises DatabaseError."""

PATIENCE = 10.0
"""Seconds after which what has not come counts as missing."""

AT_ONCE = 5.0
"""Seconds within which the first frame comes if nothing holds it back."""

_MESSAGES = 5
_LATE = 2.0  # seconds to the first byte; more, twice in a row, is a warning
_SLOW = 1.0  # seconds from the commit to the arrival; more, twice in a row, is a warning
_CORKED = 0.15  # seconds; Linux waits 200 ms for a full packet if a program says that more will come (MSG_MORE)
_PIECE, _PIECES = 16 * 1024, 40  # messages that push what a buffer holds


class PathChecks:
    """The checks of one address, with the signed or public name ``token`` of a stream.

    Without ``publish``, only what a reader can see is checked, and ``reason`` says why. ``watch`` is how long, in seconds, a quiet
    connection is watched; None for three heartbeats, 0 for not at all. :meth:`findings` yields until a check shows that the rest
    cannot be tried.
    """

    def __init__(
        self, address: Address, token: str, publish: Publish | None, watch: float | None = None, *, reason: str = ""
    ) -> None:
        self._address = address
        self._path = f"/streams/{token}"
        self._publish = publish
        self._watch = watch
        self._reason = reason
        self._fronts: dict[str, str] = {}
        self._connection_ids: list[str] = []

    def findings(self) -> Iterator[Finding]:
        """Run the checks, and yield what they find."""
        front = FrontChecks(self._address, self._path)
        yield from front.findings()
        if not front.passes:
            return
        self._fronts = front.fronts
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

    # the stream

    def _opened(self, stream: Stream) -> Iterator[Finding]:
        """Wait for the first frame, and judge the head of the answer."""
        stream.wait(lambda: stream.frames or stream.is_other, AT_ONCE if self._publish else PATIENCE)
        if not stream.frames and not stream.is_other and stream.ended is None and (held := self._held_back(stream)):
            if "content-encoding" in stream.headers:
                yield self._compression(stream)
            yield held
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
        yield self._first_byte(stream)
        yield self._compression(stream)
        yield self._answer(stream)

    def _first_byte(self, stream: Stream) -> Finding:
        first = (stream.first_byte or 0.0) - stream.began
        if first > _LATE:
            first = min(first, self._first_byte_again())
        figures = {"first_byte_seconds": rounded(first)}
        if first <= _LATE:
            return Finding("stream", OK, f"the first byte comes after {first * 1000:.0f} ms", figures=figures)
        text = f"the first byte comes only after {first:.1f} s"
        todo = "look for what a request waits for: the authorize hook, the database, or a subrequest of what stands in front"
        return Finding("stream", WARN, text, todo, figures)

    def _first_byte_again(self) -> float:
        """Return the seconds to the first byte of a further stream: one alone may be late because a machine was busy."""
        with Stream(self._address, self._path) as stream:
            stream.wait(lambda: stream.first_byte, PATIENCE)
            return (stream.first_byte or inf) - stream.began

    def _held_back(self, stream: Stream) -> Finding | None:
        """Push with messages what may wait in a buffer. Return None if the first frame is only late."""
        waited, pushed = monotonic() - stream.began, 0
        for _ in range(_PIECES if self._publish else 0):
            if stream.frames or self._try_to_publish(secrets.token_hex(_PIECE // 2)) is not None:
                break
            pushed += _PIECE
            gevent.sleep(0.05)
        stream.wait(lambda: stream.frames, 1.0 if pushed else 0.0)
        if stream.frames and self._comes_by_itself():
            return None
        text = f"no frame of the stream came within {waited:.0f} s"
        figures = {"waited_seconds": rounded(waited), "published_bytes": pushed, "came": bool(stream.frames)}
        if stream.frames:
            text += f"; it came when {pushed // 1024} kB more had been published, so a buffer holds frames back"
        else:
            text += f", nor after {pushed // 1024} kB of messages" if pushed else ", although the server sends at once"
            text += "; the element polls here after 90 s, so its messages come, but each is a request"
        return Finding("buffering", FAIL, text, self._remedy("buffering"), figures)

    def _comes_by_itself(self) -> bool:
        """Whether a further stream begins although nothing is published."""
        with Stream(self._address, self._path) as stream:
            return stream.wait(lambda: stream.frames, PATIENCE)

    def _compression(self, stream: Stream) -> Finding:
        coding = stream.headers.get("content-encoding", "identity")
        figures = {"coding": coding}
        if coding == "identity":
            return Finding("compression", OK, "the stream is not compressed", figures=figures)
        text = f"the stream is compressed ({coding}), which the server does not do: it takes memory for each connection, and"
        return Finding("compression", WARN, f"{text} may hold frames back", self._remedy("compression"), figures)

    def _answer(self, stream: Stream) -> Finding:
        control = stream.headers.get("cache-control", "")
        accel = stream.headers.get("x-accel-buffering")
        figures = {"cache_control": control, "x_accel_buffering": accel}
        if "no-cache" not in control or "no-transform" not in control:
            text = f"the answer has cache-control: {control!r}, instead of no-cache, no-transform"
            todo = "let the header pass as the server sends it: it keeps caches and CDNs away"
            return Finding("answer", WARN, text, todo, figures)
        if accel != "no" and "nginx" not in self._fronts:  # nginx takes it for itself, and passes it on to nobody
            text = "the header x-accel-buffering does not arrive, so an nginx further out would hold frames back"
            todo = "let the header pass as the server sends it, unless it is an nginx further in that takes it"
            return Finding("answer", WARN, text, todo, figures)
        return Finding("answer", OK, "the headers of the answer arrive", figures=figures)

    # messages

    def _deliveries(self, stream: Stream) -> Iterator[Finding]:
        if self._publish is None:
            for check in ("delivery", "replay"):
                yield Finding(check, SKIP, f"not tried, because {self._reason or 'nothing is published'}")
            return
        took = self._times(stream)
        if isinstance(took, list) and _slowness(took):
            took = self._times(stream)  # the machines may have been busy
        if isinstance(took, Finding):
            yield took
            return
        texts = [frame.data for frame in stream.messages]
        if len(texts) > len(set(texts)):
            todo = "look for something that repeats answers: only a connection that breaks within a frame may repeat one message"
            yield Finding("delivery", FAIL, "a message came twice on one connection", todo)
            return
        yield self._delivery(took)

    def _times(self, stream: Stream) -> list[float] | Finding:
        """Publish messages, one after the other, and return the seconds from each commit to the arrival, or what is wrong."""
        took: list[float] = []
        for _ in range(_MESSAGES):
            data = secrets.token_hex(16)
            failed, committed = self._try_to_publish(data), monotonic()
            if failed is not None:
                return failed
            stream.wait(partial(stream.arrival, data), PATIENCE)
            arrived = stream.arrival(data)
            if arrived is None:
                return self._not_delivered(stream)
            took.append(max(0.0, arrived - committed))
        return took

    def _delivery(self, took: list[float]) -> Finding:
        middle, longest = sorted(took)[len(took) // 2] * 1000, max(took) * 1000
        figures = {
            "messages": len(took),
            "fastest_seconds": rounded(min(took)),
            "median_seconds": rounded(middle / 1000),
            "slowest_seconds": rounded(max(took)),
        }
        text = f"{len(took)} messages arrive {middle:.0f} ms after the commit, the slowest {longest:.0f} ms after it"
        slowness = _slowness(took)
        if slowness == "late":
            todo = self._remedy("buffering", "run `pgbus-gevent doctor` without a URL (listen, database)")
            return Finding("delivery", WARN, text, todo, figures)
        if slowness == "corked":
            text += f", and none within {_CORKED * 1000:.0f} ms, as if something waited for more bytes"
            return Finding("delivery", WARN, text, self._remedy("buffering"), figures)
        return Finding("delivery", OK, text, figures=figures)

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
        came = len([data for data in got if data in missed])
        figures = {"missed": len(missed), "replayed": came, "others": len(got) - came}
        if got == missed:
            text = "a client that comes back gets exactly what it missed, in order"
            yield Finding("replay", OK, text, figures=figures)
            return
        text = f"a client that came back after {len(missed)} messages got {came} of them"
        if len(got) > len(missed):
            text += f", and {len(got) - len(missed)} others"
        todo = self._remedy("headers", "Last-Event-ID must arrive, and no answer may be cached")
        yield Finding("replay", FAIL, text, todo, figures)

    def _cache(self) -> Finding:
        """Two answers to the same URL must be two, whatever their headers say."""
        marks = [secrets.token_hex(4) for _ in range(2)]
        facts = [facts_of(self._ask(mark)) for mark in marks]
        told = [each["lastEventId"] for each in facts if each is not None]
        same = len(told) == 2 and None not in told and told[0] == told[1]
        if same or len(set(self._connection_ids)) < len(self._connection_ids):
            text = "an answer came from a cache: two requests got the same one"
            return Finding("cache", FAIL, text, self._remedy("cache"))
        return Finding("cache", OK, "no answer comes from a cache")

    def _ask(self, mark: str) -> Reply | None:
        try:
            return self._address.ask(f"{self._path}?received", {"Accept": EVENTS, "Last-Event-ID": mark})
        except (OSError, HTTPException):
            return None

    def _remedy(self, problem: str, rule: str = "") -> str:
        return remedies(problem, self._fronts, rule)


def _slowness(took: list[float]) -> str:
    """Return what is wrong with these times from commits to arrivals, or an empty text."""
    if max(took) > _SLOW:
        return "late"
    return "corked" if min(took) > _CORKED else ""


def _described(stream: Stream) -> str:
    if stream.status is None:
        return f"no answer: {stream.cause or 'the connection was closed'}"
    kind = stream.headers.get("content-type", "no content type")
    return f"status {stream.status}, {kind}: {stream.body.strip().partition(chr(10))[0][:120]!r}"
