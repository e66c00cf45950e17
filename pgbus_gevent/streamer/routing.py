"""From a notification to the stream that it is about."""

from __future__ import annotations

from collections.abc import Callable
from time import time

from ..core import wakes
from ..core.registry import Registry
from ..core.stream_log import StreamLog

MAX_DISTANCE = 86_400.0
"""Seconds by which an id, or the time of an append, may be off this host's clock. Ids lag the database's clock in microseconds."""


class WakeRouter:
    """Takes what the listener heard; never yields, as the listener must not be kept from its session.

    ``on_ring`` is told that there was something at all, ``on_moved`` of a log with so many new frames, ``look`` of one that
    has to be read, ``take`` of an ephemeral message,
    ``on_control`` of what is not about messages. ``clock`` gives Unix seconds.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        on_ring: Callable[[], None],
        on_moved: Callable[[StreamLog, int], None],
        look: Callable[[StreamLog], None],
        take: Callable[[wakes.Ephemeral], None],
        on_control: Callable[[], None],
        clock: Callable[[], float] = time,
    ) -> None:
        self._registry = registry
        self._on_ring = on_ring
        self._on_moved = on_moved
        self._look = look
        self._take = take
        self._on_control = on_control
        self._clock = clock

    def hear(self, payloads: list[str]) -> None:
        """Payloads came, in this order."""
        self._on_ring()
        for payload in payloads:
            wake = wakes.parse(payload)
            if isinstance(wake, wakes.Ring):
                self._ring(wake)
            elif isinstance(wake, wakes.Ephemeral):
                self._take(wake)
            elif isinstance(wake, wakes.Control):
                self._on_control()
            else:
                for name in wake.streams or ():
                    log = self._registry.log(name)
                    if log is not None:
                        self._look(log)

    def _ring(self, ring: wakes.Ring) -> None:
        log = self._registry.log(ring.stream)
        if log is None or (log.is_open and ring.id <= log.head):
            return  # what was heard already; a head that lies too far ahead is found by the next probe
        now = self._clock()
        # Whoever knows a channel's name can ring with what was never stored, and with an id that would silence the stream. So what
        # is not plainly the next message is looked up.
        if log.follows(ring.prev_id) and ring.id < (now + MAX_DISTANCE) * 1e6:
            if log.appended_at is None and ring.created_at is not None and abs(now - ring.created_at) < MAX_DISTANCE:
                log.appended_at = ring.created_at
            self._on_moved(log, log.extend([ring]))
        else:
            self._look(log)
