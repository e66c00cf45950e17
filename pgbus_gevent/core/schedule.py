"""Which clients are to be looked at when: slots of equal length, instead of a timer for each connection."""

from __future__ import annotations

import math
from collections.abc import Iterator

from .client import Client


class Schedule:
    """Each client stands in the slot in which it is due next; ``tick`` is the length of a slot, in seconds.

    Times are of a monotonic clock. Nothing here yields to other greenlets.
    """

    def __init__(self, tick: float) -> None:
        self.tick = tick
        self.new: dict[Client, None] = {}
        """Clients for which nobody has found out yet when they are due."""
        self._slots: dict[int, dict[Client, None]] = {}
        self._done = 0

    def __len__(self) -> int:
        return len(self.new) + sum(map(len, self._slots.values()))

    def add(self, client: Client) -> None:
        """A client has come, or something about it has changed: find out within a tick when it is due."""
        self.remove(client)
        self.new[client] = None

    def place(self, client: Client, at: float) -> None:
        """Have ``client`` looked at around ``at``, at most one tick later."""
        self.remove(client)
        client.due = max(self._done + 1, math.ceil(at / self.tick))
        self._slots.setdefault(client.due, {})[client] = None

    def remove(self, client: Client) -> None:
        """The client has gone."""
        self.new.pop(client, None)
        slot = self._slots.get(client.due)
        if slot is not None and slot.pop(client, self) is None and not slot:
            del self._slots[client.due]

    def due(self, now: float) -> Iterator[Client]:
        """Take out the clients that are due, one by one: should the caller raise, the others are still there."""
        self._done = math.floor(now / self.tick)
        for number in sorted(number for number in self._slots if number <= self._done):
            slot = self._slots[number]
            while slot:
                client, _ = slot.popitem()
                yield client
            self._slots.pop(number, None)
