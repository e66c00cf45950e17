"""The ledger: every message that was ever committed, for the oracle. The workers never see it."""

from __future__ import annotations

from bisect import bisect_right

from .loop import CLOCK


class Message:
    """A message. ``seen_at`` is when it became visible, in monotonic seconds; ``gone`` says that it was pruned.

    ``rang`` says that a notification brought it when it was committed.

    ``returned_at`` is when the database lost its pruning, so that it is there again; 0 if that never happened. ``lost_at`` is
    when the database lost the message itself, or when somebody forged it.
    """

    __slots__ = (
        "data",
        "event",
        "exclude",
        "gone",
        "id",
        "lost_at",
        "prev_id",
        "rang",
        "returned_at",
        "seen_at",
        "stream",
        "visible_to",
    )

    def __init__(self, stream: str, data: str, event: str | None, visible_to: str | None, exclude: str | None) -> None:
        self.stream, self.data, self.event = stream, data, event
        self.visible_to, self.exclude = visible_to, exclude
        self.id = 0
        self.prev_id: int | None = 0
        self.seen_at = 0.0
        self.gone = self.rang = False
        self.returned_at = self.lost_at = 0.0

    @property
    def was_pruned(self) -> bool:
        """Whether it is pruned, or was so for a time."""
        return self.gone or self.returned_at > 0.0


def id_of(message: Message) -> int:
    """Return the id of a message."""
    return message.id


class Stream:
    """The messages of a stream that were committed on this timeline, with the pruned ones."""

    def __init__(self) -> None:
        self.history: list[Message] = []
        self.highest_horizon = 0

    def above(self, id: int) -> list[Message]:
        """Return the messages above an id."""
        return self.history[bisect_right(self.history, id, key=id_of) :]

    def prune(self, horizon: int) -> None:
        """Note the horizon. After a loss, it may be lower than before."""
        self.highest_horizon = max(self.highest_horizon, horizon)
        for message in self.history:
            if message.gone and message.id > horizon:
                message.returned_at = CLOCK.now
            message.gone = message.id <= horizon

    def lose(self, kept: set[int], horizon: int) -> list[Message]:
        """Remove what is neither kept nor pruned, and return it."""
        lost = [message for message in self.history if message.id > horizon and message.id not in kept]
        self.history = [message for message in self.history if message.id <= horizon or message.id in kept]
        self.prune(horizon)
        return lost
