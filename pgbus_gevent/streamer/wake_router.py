"""Takes what notifications say to the parts that it is for."""

from __future__ import annotations

from collections.abc import Callable

from ..core.registry import Registry
from ..core.stream_log import StreamLog
from ..core.wakes import Ephemeral, Ring, parse


class WakeRouter:
    """Called by the listener, which must not be kept from its session: nothing here yields.

    ``on_moved`` is given a log and how many frames it has taken in, ``look`` a log that may be behind its table, ``on_ephemeral``
    an ephemeral message.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        on_moved: Callable[[StreamLog, int], None],
        look: Callable[[StreamLog], None],
        on_ephemeral: Callable[[Ephemeral], None],
    ) -> None:
        self._registry = registry
        self._on_moved = on_moved
        self._look = look
        self._on_ephemeral = on_ephemeral

    def hear(self, payloads: list[str]) -> None:
        """Notifications came. One that names no stream is for the sweep that follows any of them."""
        for payload in payloads:
            wake = parse(payload)
            if isinstance(wake, Ring):
                self._ring(wake)
            elif isinstance(wake, Ephemeral):
                self._on_ephemeral(wake)
            else:
                for name in wake.streams or ():
                    log = self._registry.log(name)
                    if log is not None:
                        self._look(log)

    def _ring(self, ring: Ring) -> None:
        log = self._registry.log(ring.stream)
        if log is None:
            return
        if log.follows(ring.prev_id):
            # The next one, whole: it needs no read.
            self._on_moved(log, log.extend([ring]))
        elif ring.id > log.head:
            self._look(log)
