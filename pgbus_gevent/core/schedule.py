"""When the heartbeat checks each client: slots of equal length, instead of a timer for each connection."""

from __future__ import annotations

import math
from collections.abc import Iterator

from .client import Client


class Schedule:
    """Holds each client in the slot in which it is due next. ``tick`` is the length of a slot, in seconds.

    Times are in seconds of a monotonic clock. Nothing here yields, so each method is atomic; :meth:`due` is a generator, and
    clients may be put or removed between two of its steps.
    """

    def __init__(self, tick: float) -> None:
        self.tick = tick
        self.new: dict[Client, None] = {}
        """Clients that have no slot yet."""
        self._slots: dict[int, dict[Client, None]] = {}
        self._done = 0

    def __len__(self) -> int:
        return len(self.new) + sum(map(len, self._slots.values()))

    def add(self, client: Client) -> None:
        """Have a client given a slot within a tick, because it is new or its deadline has changed."""
        self.remove(client)
        self.new[client] = None

    def put(self, client: Client, at: float) -> None:
        """Have ``client`` checked at the time ``at``, or up to one tick later."""
        self.remove(client)
        client.due = max(self._done + 1, math.ceil(at / self.tick))
        self._slots.setdefault(client.due, {})[client] = None

    def remove(self, client: Client) -> None:
        """Take a client off the schedule."""
        self.new.pop(client, None)
        slot = self._slots.get(client.due)
        if slot is not None and slot.pop(client, self) is None and not slot:
            del self._slots[client.due]

    def due(self, now: float) -> Iterator[Client]:
        """Take out the clients that are due, one by one. If the caller raises, the others are still in their slots."""
        self._done = math.floor(now / self.tick)
        for number in sorted(number for number in self._slots if number <= self._done):
            slot = self._slots[number]
            while slot:
                client, _ = slot.popitem()
                yield client
            self._slots.pop(number, None)
