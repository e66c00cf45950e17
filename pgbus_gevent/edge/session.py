"""The session on which a worker of an edge hears of new messages: one connection to the origin, and at times a second one.

A *line* is one request to the origin, which names the streams to follow and the edge's head of each, and whose answer is an event
stream that does not end. The set of streams of a line does not change, so every proxy and every balancer passes it on. To follow
more streams, the session opens another line before it closes one. Because a line starts at the edge's heads, nothing is lost in
between, whichever worker of the origin each line leads to. While a line opens, the others are heard.
"""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Collection, Iterable
from time import monotonic

import gevent
from gevent.event import Event

from ..core.registry import Registry
from ..core.retries import Backoff
from ..core.taps import RESYNC
from ..core.work import Flag
from ..errors import DatabaseError, DatabaseUnavailable
from .line import SILENCE, Inbox, Line
from .origin import Origin

logger = logging.getLogger("pgbus_gevent.edge")

OPEN_PATIENCE = 4.0
"""Seconds for which a new line is tried again after it has failed. After that, the session is given up."""

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

NUMBERS = 4096
"""How many numbers of ephemeral messages are remembered, so that one that comes on two lines is taken once."""


_PAUSES = 0.05, 1.0  # the first and the longest between two tries, in seconds


class WakeSession:
    """A session of :class:`pgbus_gevent.streamer.listener.Listener`, which alone uses it.

    ``registry`` has the logs of the worker. The session begins with their streams. Raises the errors of :class:`Origin`.

    A greenlet of its own, the opener, opens further lines. It alone changes the set of lines; while it waits for the origin, the
    listener takes what the lines hear, and may ask for more streams.
    """

    cause = "the origin sends nothing"

    def __init__(self, origin: Origin, registry: Registry) -> None:
        self._origin = origin
        self._registry = registry
        self._inbox = Inbox()
        self._lingering: dict[Line, float] = {}
        self._numbers: OrderedDict[tuple[str, int], float] = OrderedDict()  # and when each came
        self._overlap = 0.0
        self._failure: Exception | None = None
        self._needed = frozenset(log.name for log in registry.logs())
        self._wanted: set[str] = set()  # the streams for the next line, and the flag that says that it is there
        self._heard = Event()
        self._fold = False
        self._opener: gevent.Greenlet[..., None] | None = None
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

    def follow(self, streams: Collection[str] | None) -> Flag | None:
        """Hear of these streams too. Return None if they are heard already, otherwise a flag that is set when they are.

        None, for all streams, adds none: an origin that needs them all hears them itself.
        """
        wanted = frozenset(streams or ())
        self._needed |= wanted
        new = self._unheard(wanted)
        if not new:
            return None
        self._wanted |= new
        self._open()
        return self._heard

    def narrow(self, streams: Collection[str]) -> None:
        """Hear only of these streams, once lines are replaced."""
        self._needed = frozenset(streams)

    def _unheard(self, streams: Iterable[str]) -> set[str]:
        return {name for name in streams if not any(name in line.streams for line in self._lines)}

    def _open(self) -> None:
        """Have the opener do what there is to do."""
        if self._opener is None or self._opener.ready():
            self._opener = gevent.spawn(self._run_opener)

    def _run_opener(self) -> None:
        try:
            while self._wanted or self._fold:
                if self._wanted:
                    # What is wanted from now on waits for the next line.
                    streams, self._wanted = self._wanted, set()
                    heard, self._heard = self._heard, Event()
                    self._extend(streams)
                    heard.set()
                    self._inbox.interrupt()
                else:
                    self._fold = False
                    self._make_one_line()
        except Exception as error:  # raised by receive()
            self._inbox.put(None, error)

    def _extend(self, streams: Iterable[str]) -> None:
        """Follow further streams, and try it again for a while if that fails.

        Behind a balancer, the next request may lead to another server. The other lines are not given up for one that stops.
        """
        backoff, end = Backoff(*_PAUSES), monotonic() + OPEN_PATIENCE
        while True:
            try:
                return self._add(self._unheard(streams))
            except DatabaseUnavailable:
                if monotonic() > end:
                    raise
            gevent.sleep(backoff.next())

    def _add(self, new: set[str]) -> None:
        """Open a line for ``new`` and for the streams of the lines that it replaces, and then close those."""
        if not new:
            return
        wanted = set(new)
        replaced: list[Line] = []
        for line in sorted(self._lines, key=lambda line: len(line.streams)):
            if len(line.streams) > max(SMALL, 2 * len(wanted)) and len(self._lines) - len(replaced) < MOST_LINES:
                break
            replaced.append(line)
            wanted |= line.streams & self._needed
        self._replace(wanted, replaced)

    def _make_one_line(self) -> None:
        try:
            self._replace(self._needed, self._lines)
        except DatabaseError as error:
            logger.debug("the lines to the origin stay as they are, because another one could not be opened: %s", error)
            self._changed = monotonic()  # so that it is tried again later

    def _replace(self, streams: Iterable[str], replaced: Collection[Line]) -> None:
        line = self._line(streams)
        self._changed = self._overlap = monotonic()
        self._lines = [each for each in self._lines if each not in replaced] + [line]
        self._lingering.update(dict.fromkeys(replaced, self._changed + LINGER))
        # The new line begins with what the origin knew when it took the request, and the first read of such a stream may have seen
        # less. A message in between comes only on the old line, which is not read for ever.
        again = [name for name in line.unknown if any(name in each.streams for each in replaced)]
        if again:
            self._inbox.put(line, json.dumps(["moved", *again]))

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
        for line, found in self._inbox.take(timeout):
            if isinstance(found, str):
                lost |= found == RESYNC
                if found != RESYNC and not self._is_repeated(found):
                    payloads.append(found)
            elif line is None or line in self._lines:
                # Raised by the next call, because the payloads before it are good.
                self._failure = found
        self._end_lingering()
        if self._failure is not None and not payloads:
            raise self._failure
        return payloads, lost

    def _is_repeated(self, payload: str) -> bool:
        """Whether an ephemeral message has come on another line already. Other messages are known by their ids."""
        if not payload.startswith('["ephemeral",'):
            return False
        try:
            _, stream, number, *_ = json.loads(payload)
        except (ValueError, RecursionError):
            return False
        if not isinstance(stream, str) or not isinstance(number, int):
            return False  # the listener passes it over
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
        self._inbox.interrupt()

    # life

    def hears(self) -> bool:
        """Whether the origin has greeted this session, which it has: otherwise the session would not have been opened."""
        return True

    def ping(self) -> None:
        """Raise :class:`DatabaseUnavailable` if a line is dead. Make one line of several if no new one has come for a while."""
        self._end_lingering()
        now = monotonic()
        if any(line.is_silent(now) for line in self._lines):
            raise DatabaseUnavailable(f"nothing came from the origin for {SILENCE:g} s, not even a heartbeat")
        followed = sum(len(line.streams) for line in self._lines)
        stale = followed > 2 * max(SMALL, len(self._needed))
        if (len(self._lines) > 1 or stale) and now - self._changed > FOLD_AFTER:
            self._fold = True
            self._open()

    def close(self) -> None:
        """End all lines. Idempotent."""
        if self._opener is not None:
            self._opener.kill()
        for line in [*self._lines, *self._lingering]:
            line.close()
        self._lingering.clear()
