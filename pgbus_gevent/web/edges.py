"""What an origin serves to edges: the connections on which they hear of new messages, and their reads."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable
from time import monotonic, time
from typing import Any

import gevent
from gevent.event import Event

from ..core import following, hop, sse
from ..core.retries import Seldom
from ..core.taps import Tap
from ..edge import origin
from ..errors import DatabaseError, InvalidArgument
from ..streamer.instance import Instance
from . import requests
from .guesses import Door
from .process import release
from .responses import Answer, Environ, Headers, Refused, json_answer, text

logger = logging.getLogger("pgbus_gevent.edges")

OPEN_WAIT = 3.0
"""The longest time, in seconds, for which a greeting waits until the streams of an edge have been opened here.

The streams that are not open by then are opened later, and the edge reads them once more."""

_POST = ("POST",)


class Edges:
    """The routes for edges. They let in requests with one of the worker tokens of the settings, and no others."""

    def __init__(self, instance: Instance, clock: Callable[[], float] = monotonic) -> None:
        settings = instance.settings
        self._instance = instance
        self._settings = settings
        self._door = (
            # Edges come through the proxy through which everybody comes, so it does not shut.
            Door("worker", settings.worker_token, settings.secret, instance.database.operators, shuts=False)
            if settings.worker_token
            else None
        )
        self._complaints = Seldom(clock, most=100)
        self.reads = 0
        self.routes: dict[str, tuple[tuple[str, ...], Callable[[Environ], Any]]] = {
            hop.WAKES: (_POST, self._wakes),
            hop.READS: (_POST, self._read),
        }

    def _question(self, environ: Environ) -> dict[str, Any]:
        """The body of a request by an edge. Raises Refused: 401, 403 or 429 for its token, 426 for its version, 400."""
        if self._door is None:
            raise Refused(text(403, "this server takes no edges: set PGBUS_WORKER_TOKEN to turn that on"))
        try:
            self._door.check(environ, requests.bearer(environ))
        except Refused:
            address = str(environ.get("REMOTE_ADDR") or "")
            if self._complaints.due(address) is not None:
                logger.warning(
                    "an edge at %s was refused, because its worker token is not one of this server's: give both the same"
                    " PGBUS_WORKER_TOKEN",
                    address,
                )
            raise
        version = environ.get("HTTP_PGBUS_HOP")
        if version != str(hop.HOP):
            raise Refused(text(426, f"this server speaks version {hop.HOP} of the protocol between edge and origin"))
        body = requests.read_body(environ, limit=hop.MAX_BODY, timeout=self._settings.request_timeout)
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise Refused(text(400, "the body is not a JSON object"))
        return found

    # reads

    def _read(self, environ: Environ) -> Answer:
        question = self._question(environ)
        self.reads += 1
        passed = origin.passed.set(self._passed(environ))
        try:
            if question.get("read") == "clock":
                return self._clock()
            # From the database itself, and not from the sources of this worker's reader, because another worker may have told the
            # edge of messages that those do not have yet.
            found = hop.answer(self._instance.database.queries, question)
        except DatabaseError as error:
            return text(503, f"this server cannot read: {error}", ("retry-after", "1"))
        except (InvalidArgument, ValueError, TypeError, KeyError, AttributeError) as error:
            return text(400, f"malformed read: {ascii(error)[:200]}")
        finally:
            origin.passed.reset(passed)
        return Answer(200, hop.written(found), [("content-type", "application/json"), ("cache-control", "no-store")])

    def _passed(self, environ: Environ) -> str:
        """The ids of the edges that a read has passed. Raises Refused (508) if this is one of them, or if they are too many."""
        found = str(environ.get("HTTP_PGBUS_VIA") or "")
        ids = found.split(",")
        upstream = self._instance.upstream
        if len(ids) > hop.MAX_EDGES or (upstream is not None and upstream.pool.id in ids):
            raise Refused(text(508, "this read has come here before: there are edges that name each other as origin"))
        return found

    def _clock(self) -> Answer:
        trouble = self._instance.pulse.trouble
        if trouble:
            # The header tells the edge that the text is this server's, for the edge's readyz, which anybody may read.
            return text(503, trouble, ("retry-after", "1"), (hop.VERSION_HEADER, str(hop.HOP)))
        return json_answer(200, {"at": self._now(), "release": release()})

    def _now(self) -> float:
        """The clock of the database, in Unix seconds, as far as this worker knows it."""
        return time() + (self._instance.roll_call.clock_offset or 0.0)

    # new messages

    def _wakes(self, environ: Environ) -> WakeBody:
        question = self._question(environ)
        refusing = self._instance.health.refusing
        if refusing is not None:
            raise Refused(text(503, f"not now: {refusing}", ("retry-after", "1")))
        try:
            streams = hop.streams_of(question)
        except (InvalidArgument, ValueError, TypeError, KeyError, AttributeError) as error:
            raise Refused(text(400, f"malformed streams: {ascii(error)[:200]}")) from None
        logger.debug("an edge at %s follows %d streams", environ.get("REMOTE_ADDR"), len(streams))
        return WakeBody(self._instance, streams, self._now)


class WakeBody:
    """The body of the answer that does not end: the greeting, and then whatever the tap has.

    The server's greenlet iterates over it and closes it. It waits in :meth:`__next__` for the tap, and in the server's write for
    the edge. If the edge takes no bytes for the setting ``write_deadline``, BrokenPipeError is raised in that greenlet.
    """

    keeps_time = True
    """Tells the server that it need not apply its own time limit for slow clients."""

    def __init__(self, instance: Instance, streams: dict[str, int | None], now: Callable[[], float]) -> None:
        self._board = instance.board
        self._streams = streams
        self._now = now
        self._tap = Tap(Event())
        self._opened = False
        self._ended = False
        self._deadline: Any = gevent.Timeout(
            instance.settings.write_deadline, BrokenPipeError(errno.EPIPE, "the edge takes no bytes")
        )

    def __iter__(self) -> WakeBody:
        return self

    def __next__(self) -> bytes:
        self._deadline.cancel()
        data = self._next()
        self._deadline.start()
        return data

    def _next(self) -> bytes:
        tap = self._tap
        if not self._opened:
            self._opened = True
            following.join(self._board, tap, self._streams)
            self._streams = {}
        if not tap.greeted:
            self._wait_for_logs()
            tap.greeted = True
            return sse.message(
                json.dumps({"hop": hop.HOP, "release": release(), "heartbeat": hop.HEARTBEAT}), event=hop.GREETING
            )
        while not self._ended:
            payloads = tap.take()
            if payloads:
                return b"".join(map(sse.message, payloads))
            if tap.ended:
                self._ended = True
                return sse.shutdown("restart")
            if not tap.flag.wait(hop.HEARTBEAT):
                return b": heartbeat %.3f\n\n" % self._now()
        raise StopIteration

    def _wait_for_logs(self) -> None:
        tap, end = self._tap, monotonic() + OPEN_WAIT
        while tap.opening and not tap.ended and monotonic() < end:
            tap.flag.clear()
            tap.flag.wait(max(0.01, end - monotonic()))
        tap.flag.set()  # what has moved meanwhile is taken after the greeting

    def close(self) -> None:
        """Called by the server at the end of the response, or when the edge has left."""
        self._deadline.cancel()
        following.leave(self._board, self._tap)


def wake_headers(headers: Headers) -> Headers:
    """The headers of the answer: those of a stream, without what concerns browsers."""
    return [*headers, (hop.VERSION_HEADER, str(hop.HOP))]
