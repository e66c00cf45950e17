"""A *line* of an edge to its origin, on which new messages come, and the inbox of all lines of a session."""

from __future__ import annotations

import http.client
import json
from collections import deque
from contextlib import suppress
from time import monotonic, time
from typing import Any

import gevent
from gevent.event import Event

from ..core.hop import GREETING, HEARTBEAT, HOP, SHUTDOWN, WAKES
from ..core.sse_parser import ParsedFrame, Parser
from ..errors import DatabaseError, DatabaseUnavailable, OriginRefused
from .origin import Origin

OPEN_TIMEOUT = 5.0
"""Seconds until the origin must have greeted a new line."""

SILENCE = 3 * HEARTBEAT
"""Seconds without a byte after which a line counts as dead."""

BACKLOG = 1000
"""How many payloads wait for the listener. Beyond that the lines are not read, so the origin notes only which streams move."""

BACKLOG_SIZE = 4 * 1024 * 1024
"""How many characters of payloads wait for the listener, unless a single one is larger."""


class Inbox:
    """What the lines have heard and their session has not taken yet, in the order in which it came.

    :meth:`put` yields while the inbox is full. :meth:`take` yields while it is empty.
    """

    def __init__(self) -> None:
        self._found: deque[tuple[Line | None, str | Exception]] = deque()
        self._size = 0
        self._news, self._room = Event(), Event()
        self.blocked = 0
        """How many greenlets wait for room."""

    def put(self, line: Line | None, found: str | Exception) -> None:
        """Add what ``line`` has heard, or the error with which it has ended, once there is room. None is the session itself."""
        size = len(found) if isinstance(found, str) else 0
        while len(self._found) >= BACKLOG or (self._found and self._size + size > BACKLOG_SIZE):
            self.blocked += 1
            try:
                self._room.clear()
                self._room.wait()
            finally:
                self.blocked -= 1
        self._found.append((line, found))
        self._size += size
        self._news.set()

    def take(self, timeout: float) -> list[tuple[Line | None, str | Exception]]:
        """Wait up to ``timeout`` seconds, or until :meth:`interrupt`. Return all that is there, and remove it."""
        self._news.wait(timeout)
        self._news.clear()
        found = list(self._found)
        self._found.clear()
        self._size = 0
        self._room.set()
        return found

    def interrupt(self) -> None:
        """Have :meth:`take` return, or the next one if none waits. It never yields."""
        self._news.set()


class Line:
    """One connection for new messages. Its greenlet puts what comes into ``inbox``, with itself."""

    def __init__(self, origin: Origin, streams: dict[str, int | None], inbox: Inbox) -> None:
        self.streams = frozenset(streams)
        self.unknown = frozenset(name for name, head in streams.items() if head is None)
        """The streams whose head the edge did not know when it asked for the line."""
        self._inbox = inbox
        self._parser = Parser()
        self._connection, self._response = origin.open(
            WAKES, {"streams": streams}, timeout=OPEN_TIMEOUT, silence=SILENCE
        )
        self.heard = monotonic()
        self.lag: float | None = None
        self.greeting: dict[str, Any] = {}
        self._reader: gevent.Greenlet[..., None] | None = None
        try:
            with gevent.Timeout(OPEN_TIMEOUT, DatabaseUnavailable("the origin did not greet the edge in time")):
                early = self._greeted()
        except BaseException:
            self.close()
            raise
        self._reader = gevent.spawn(self._run, early)

    def _greeted(self) -> list[ParsedFrame]:
        while True:
            frames = self._next()
            for n, frame in enumerate(frames):
                if frame.event == GREETING:
                    self.greeting = _greeting(frame.data)
                    return frames[n + 1 :]
                if frame.event == SHUTDOWN:
                    raise DatabaseUnavailable("the origin is stopping")

    def _next(self) -> list[ParsedFrame]:
        try:
            data = self._response.read1(65536)
        except TimeoutError:
            raise DatabaseUnavailable(f"nothing came from the origin for {SILENCE:g} s, not even a heartbeat") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise DatabaseUnavailable(
                f"the connection to the origin was cut: {error or type(error).__name__}"
            ) from None
        if not data:
            raise DatabaseUnavailable("the origin ended the connection")
        self.heard = monotonic()
        return self._parser.feed(data)

    def _run(self, frames: list[ParsedFrame]) -> None:
        try:
            while True:
                for frame in frames:
                    self._take(frame)
                frames = self._next()
        except DatabaseError as error:
            self._inbox.put(self, error)

    def _take(self, frame: ParsedFrame) -> None:
        if frame.comment is not None and frame.comment.startswith("heartbeat "):
            with suppress(ValueError):
                self.lag = time() - float(frame.comment.removeprefix("heartbeat "))
        if frame.event == SHUTDOWN:
            raise DatabaseUnavailable("the origin is stopping")
        if frame.event == "message" and frame.data:
            self._inbox.put(self, frame.data)
            self.heard = monotonic()  # what came while the inbox was full has not been read yet

    def is_silent(self, now: float) -> bool:
        """Whether nothing has come for too long, although the line is being read."""
        return now - self.heard > SILENCE and not self._inbox.blocked

    def close(self) -> None:
        """Close the connection. Idempotent."""
        if self._reader is not None and self._reader is not gevent.getcurrent():
            self._reader.kill()
        self._response.close()
        self._connection.close()


def _greeting(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
        if found["hop"] != HOP:
            raise OriginRefused(
                f"the origin speaks version {found['hop']!r:.20} of the protocol between edge and origin, and this release"
                f" version {HOP}: upgrade the older of the two"
            )
        return dict(found)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise OriginRefused("its greeting is not as this release expects it") from None
