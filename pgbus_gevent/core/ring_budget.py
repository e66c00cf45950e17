"""How much the rings of a worker may hold. Nothing here yields."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Ring(Protocol):
    """The newest frames of a stream, which can be dropped; :class:`pgbus_gevent.core.stream_log.StreamLog` has one."""

    def clear_ring(self) -> None: ...


class RingLimits(NamedTuple):
    """How much the rings may hold: messages and bytes of one stream, and bytes of all streams together."""

    messages: int
    bytes: int
    all_bytes: int


class RingBudget:
    """How many bytes all rings of a worker may hold together.

    Above ``limit``, the rings of the streams that have been quiet longest are cleared.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._rings: dict[Ring, None] = {}  # in the order of their last message

    def took(self, ring: Ring, size: int) -> None:
        """Count ``size`` bytes by which ``ring`` has grown."""
        self.used += size
        self._rings.pop(ring, None)
        self._rings[ring] = None
        while self.used > self.limit and self._rings:
            next(iter(self._rings)).clear_ring()

    def gave(self, ring: Ring, size: int, *, all_of_it: bool) -> None:
        """Count ``size`` bytes by which ``ring`` has shrunk; ``all_of_it`` says that it is empty now."""
        self.used -= size
        if all_of_it:
            self._rings.pop(ring, None)
