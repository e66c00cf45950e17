"""What clients may have got and the database does not have: messages that it has lost, and forged ones."""

from __future__ import annotations

from bisect import bisect_left

from .ledger import Message, id_of
from .loop import CLOCK
from .server import Server

FORGED = "forged"
"""The data of a forged message."""

NEAR = 100
"""How far above the newest message an id is that will soon be given to a real one."""


UNHEARD = 1.0
"""Seconds within which the steward rings for a message that did not ring."""


class Losses:
    """The messages that were lost or forged, by stream and id."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.messages: dict[tuple[str, int], Message] = {}
        self._forgeries: list[tuple[str, int]] = []

    def add(self, message: Message) -> None:
        """Note a message that the database has lost."""
        message.lost_at = CLOCK.now
        self.messages[message.stream, message.id] = message

    def forged(self, stream: str, id: int) -> None:
        """Note that somebody forges a message. It may be delivered, and is then a message that the database has lost."""
        message = Message(stream, FORGED, None, None, None)
        message.id, message.seen_at = id, CLOCK.now
        self.add(message)
        self._forgeries.append((stream, id))

    def has(self, stream: str, id: int) -> bool:
        """Whether a message was lost or forged, and its id was not given to a real one since."""
        if (stream, id) not in self.messages:
            return False
        history = self._server.stream(stream).history
        place = bisect_left(history, id, key=id_of)
        return place == len(history) or history[place].id != id

    def most_heard(self, stream: str, id: int) -> int:
        """Return how often a worker may hear of a lost or forged message, because each notification may come twice."""
        return 2 * (1 + self._forgeries.count((stream, id)))

    def is_usurped(self, stream: str, id: int) -> bool:
        """Whether the id of a forged message was then given to a real one."""
        message = self.messages.get((stream, id))
        return message is not None and message.data == FORGED and not self.has(stream, id)

    def shows_from(self, stream: str, id: int, ring_messages: int) -> float:
        """Return when the real message was committed whose notification shows that the one before it was forged; or 0.

        Nothing shows it if the real one did not ring, and the steward has not looked since it heard the forged one, which it takes
        for that ring; or if so many messages follow at once that a ring of ``ring_messages`` has dropped the forged one.
        """
        following = self._server.stream(stream).above(id - 1)
        real, forged = following[0], self.messages[stream, id]
        if not real.rang and real.seen_at - forged.seen_at < UNHEARD:
            return 0.0
        many = len(following) >= ring_messages and following[ring_messages - 1].seen_at < real.seen_at + UNHEARD
        return 0.0 if many else real.seen_at

    def any_forged_in(self, stream: str) -> bool:
        """Whether a message was forged, which a worker may count among the last ones."""
        return any(name == stream for name, _ in self._forgeries)

    def forged_in(self, stream: str) -> int:
        """Return how many messages were forged with an id that a real one was given since, or one near it.

        A worker that found that out may take real messages with ids up to the forged one for lost. Its clients get them again.
        """
        history = self._server.stream(stream).history
        end = (history[-1].id if history else 0) + NEAR
        return sum(name == stream and id < end for name, id in self._forgeries)
