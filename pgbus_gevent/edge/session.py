"""The session on which a worker of an edge hears of new messages: one connection to the origin, and at times a second one.

A *line* is one request to the origin, which names the streams to follow and the edge's head of each, and whose answer is an event
stream that does not end. The set of streams of a line does not change, so every proxy and every balancer passes it on. To follow
more streams, the session opens another line before it closes one. Because a line starts at the edge's heads, nothing is lost in
between, whichever worker of the origin each line leads to.
"""

from __future__ import annotations

import http.client
import json
import logging
from collections import OrderedDict
from collections.abc import Collection, Iterable
from contextlib import suppress
from time import monotonic, time
from typing import Any

import gevent
from gevent.queue import Empty, Full, Queue

from ..core.hop import GREETING, HEARTBEAT, HOP, SHUTDOWN, WAKES
from ..core.registry import Registry
from ..core.sse_parser import ParsedFrame, Parser
from ..core.taps import RESYNC
from ..errors import DatabaseError, DatabaseUnavailable, OriginRefused
from .origin import Origin

logger = logging.getLogger("pgbus_gevent.edge")

OPEN_TIMEOUT = 5.0
"""Seconds until the origin must have greeted a new line."""

AT_ONCE = 1.0
"""If a new line fails within so many seconds, it is tried a second time. Meanwhile nothing else is heard."""

SILENCE = 3 * HEARTBEAT
"""Seconds without a byte after which a line counts as dead."""

SMALL = 256
"""A line that follows up to so many streams is replaced by one that follows more. A larger one stays, and a second one opens."""

MOST_LINES = 3
"""The most lines of a session, without those that linger."""

FOLD_AFTER = 10.0
"""Seconds after the last new line at which the session makes one line of all."""

LINGER = 0.5
"""Seconds for which a line is read after another has replaced it, for ephemeral messages that are on their way."""

OVERLAP = 5.0
"""Seconds after a new line in which an ephemeral message may come on two lines."""

BACKLOG = 1000
"""How many payloads wait for the listener. Beyond that the lines are not read, so the origin notes only which streams move."""

NUMBERS = 4096
"""How many numbers of ephemeral messages are remembered, so that one that comes on two lines is taken once."""


class Line:
    """One connection for new messages. Its greenlet puts what comes into ``inbox``, with itself."""

    def __init__(self, origin: Origin, streams: dict[str, int | None], inbox: Queue[Any]) -> None:
        self.streams = frozenset(streams)
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
            self._inbox.put((self, error))

    def _take(self, frame: ParsedFrame) -> None:
        if frame.comment is not None and frame.comment.startswith("heartbeat "):
            with suppress(ValueError):
                self.lag = time() - float(frame.comment.removeprefix("heartbeat "))
        if frame.event == SHUTDOWN:
            raise DatabaseUnavailable("the origin is stopping")
        if frame.event == "message" and frame.data:
            self._inbox.put((self, frame.data))

    def close(self) -> None:
        """Close the connection. Idempotent."""
        if self._reader is not None and self._reader is not gevent.getcurrent():
            self._reader.kill()
        self._response.close()
        self._connection.close()


class WakeSession:
    """A session of :class:`pgbus_gevent.streamer.listener.Listener`, which alone uses it.

    ``registry`` has the logs of the worker. The session begins with their streams. Raises the errors of :class:`Origin`.
    """

    cause = "the origin sends nothing"

    def __init__(self, origin: Origin, registry: Registry) -> None:
        self._origin = origin
        self._registry = registry
        self._inbox: Queue[Any] = Queue(BACKLOG)
        self._lingering: dict[Line, float] = {}
        self._numbers: OrderedDict[tuple[str, int], float] = OrderedDict()  # and when each came
        self._overlap = 0.0
        self._failure: DatabaseError | None = None
        self._needed = frozenset(log.name for log in registry.logs())
        self._lines = [self._line(self._needed)]
        self._changed = monotonic()

    @property
    def lines(self) -> int:
        """How many lines there are."""
        return len(self._lines)

    @property
    def lag(self) -> float | None:
        """The seconds that the last heartbeat was under way, as far as both clocks agree."""
        return max((line.lag for line in self._lines if line.lag is not None), default=None)

    # streams

    def follow(self, streams: Collection[str] | None) -> None:
        """Hear of these streams too. None, for all streams, adds none: an origin that needs them all hears them itself."""
        new = frozenset(streams or ()) - frozenset().union(*(line.streams for line in self._lines))
        self._needed |= frozenset(streams or ())
        if new:
            self._open(new)

    def narrow(self, streams: Collection[str]) -> None:
        """Hear only of these streams, once lines are replaced."""
        self._needed = frozenset(streams)

    def _open(self, new: Iterable[str]) -> None:
        """Open a line for ``new`` and for the streams of the lines that it replaces, and then close those."""
        wanted = set(new)
        replaced: list[Line] = []
        for line in sorted(self._lines, key=lambda line: len(line.streams)):
            if len(line.streams) > max(SMALL, 2 * len(wanted)) and len(self._lines) - len(replaced) < MOST_LINES:
                break
            replaced.append(line)
            wanted |= line.streams & self._needed
        self._replace(wanted, replaced)

    def _replace(self, streams: Iterable[str], replaced: list[Line]) -> None:
        began = monotonic()
        try:
            line = self._line(streams)
        except DatabaseUnavailable:
            # Behind a balancer, the next request may lead to another server. The other lines are not given up for one that stops.
            if monotonic() - began > AT_ONCE:
                raise
            line = self._line(streams)
        self._changed = self._overlap = monotonic()
        self._lines = [each for each in self._lines if each not in replaced] + [line]
        self._lingering.update(dict.fromkeys(replaced, self._changed + LINGER))

    def _line(self, streams: Iterable[str]) -> Line:
        logs = {name: self._registry.log(name) for name in streams}
        # From the heads as they are now. What is on its way on another line comes again, and is known by its ids.
        heads = {name: log.head if log is not None and log.is_open else None for name, log in logs.items()}
        return Line(self._origin, heads, self._inbox)

    # what comes

    def receive(self, timeout: float) -> tuple[list[str], bool]:
        """Wait up to ``timeout`` seconds, or until :meth:`interrupt`. Return the payloads, and whether others may be lost."""
        if self._failure is not None:
            raise self._failure
        payloads: list[str] = []
        lost = False
        for line, found in self._waiting(timeout):
            if isinstance(found, str):
                lost |= found == RESYNC
                if found != RESYNC and not self._is_repeated(found):
                    payloads.append(found)
            elif found is not None and line in self._lines:
                # Raised by the next call, because the payloads before it are good.
                self._failure = found
        self._end_lingering()
        if self._failure is not None and not payloads:
            raise self._failure
        return payloads, lost

    def _waiting(self, timeout: float) -> list[tuple[Line | None, str | DatabaseError | None]]:
        found = []
        with suppress(Empty):
            found.append(self._inbox.get(timeout=timeout))
            while len(found) < BACKLOG:
                found.append(self._inbox.get_nowait())
        return found

    def _is_repeated(self, payload: str) -> bool:
        """Whether an ephemeral message has come on another line already. Other messages are known by their ids."""
        if not payload.startswith('["ephemeral",'):
            return False
        try:
            _, stream, number, *_ = json.loads(payload)
        except ValueError:
            return False
        # Remembered also while there is one line: the next one may lead to a worker that hears of this message later.
        now, before = monotonic(), self._numbers.get((stream, number), float("-inf"))
        self._numbers[stream, number] = now
        if len(self._numbers) > NUMBERS:
            self._numbers.popitem(last=False)
        return max(now - self._overlap, now - before) <= OVERLAP

    def _end_lingering(self) -> None:
        now = monotonic()
        for line in [line for line, end in self._lingering.items() if now >= end]:
            del self._lingering[line]
            line.close()

    def interrupt(self) -> None:
        """Have :meth:`receive` return, or the next one if none waits. For other greenlets; it never yields."""
        with suppress(Full):  # then receive() does not wait
            self._inbox.put_nowait((None, None))

    # life

    def hears(self) -> bool:
        """Whether the origin has greeted this session, which it has: otherwise the session would not have been opened."""
        return True

    def ping(self) -> None:
        """Raise :class:`DatabaseUnavailable` if a line is dead. Make one line of several if no new one has come for a while."""
        self._end_lingering()
        now = monotonic()
        if any(now - line.heard > SILENCE and not self._inbox.full() for line in self._lines):
            raise DatabaseUnavailable(f"nothing came from the origin for {SILENCE:g} s, not even a heartbeat")
        followed = sum(len(line.streams) for line in self._lines)
        stale = followed > 2 * max(SMALL, len(self._needed))
        if (len(self._lines) > 1 or stale) and now - self._changed > FOLD_AFTER:
            self._replace(self._needed, self._lines)

    def close(self) -> None:
        """End all lines. Idempotent."""
        for line in [*self._lines, *self._lingering]:
            line.close()
        self._lingering.clear()


def _greeting(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
        if found["hop"] != HOP:
            raise OriginRefused(
                f"the origin speaks version {found['hop']!r:.20} of the protocol between edge and origin, and this release"
                f" version {HOP}: upgrade the older of the two"
            )
        return dict(found)
    except (ValueError, TypeError, KeyError):
        raise OriginRefused("its greeting is not as this release expects it") from None
