"""A client's place in one stream, as the oracle sees it, and how a promise to it is broken."""

from __future__ import annotations

from typing import Protocol

from .loop import CLOCK


class Failure(Exception):
    """A promise was broken. ``kind`` is ``lost``, ``repeated``, ``order``, ``forbidden``, ``gap``, ``idle``, ``ephemeral``
    or ``worker``."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class Rights(Protocol):
    """What a client may see, and since when."""

    name: str

    def may_see(self, label: str) -> bool: ...
    def steady_since(self, label: str) -> float: ...


class Seat:
    """A client in one stream, on one connection: how far it was served, and what it was told.

    ``position`` is the id up to which it has all that it is entitled to; None before its greeting. ``told`` says that it was told
    of a gap since its last message. ``lost`` is the last message of a lost timeline that it was sent, and of which it must be
    told. If ``until_next`` is not 0, it need not be told before the first message that is committed after that time.
    ``requested`` are the lost messages of which it was told since it was sent them, and ``repeats`` counts what it was told beside
    them; ``sent_lost`` are those that it was sent. ``since`` is when the client was ready to get messages, and ``came_at`` when it
    connected. ``replay`` is how many old messages it asked for.
    """

    __slots__ = (
        "asked",
        "came_at",
        "connection",
        "heard",
        "lost",
        "lost_at",
        "position",
        "ready",
        "repeats",
        "replay",
        "requested",
        "rights",
        "sent_lost",
        "since",
        "stream",
        "told",
        "until_next",
    )

    def __init__(self, stream: str, rights: Rights, asked: int | None, replay: int | None = None) -> None:
        self.stream = stream
        self.rights = rights
        self.asked = asked
        self.replay = replay
        self.position: int | None = None
        self.told = False
        self.lost: int | None = None
        self.lost_at = 0.0
        self.until_next = 0.0
        self.requested: set[int] = set()
        self.sent_lost: list[int] = []
        self.repeats = 0
        self.since = self.ready = self.came_at = CLOCK.now
        self.connection = ""
        self.heard = 0  # the number of its last ephemeral message

    def lose(self, id: int, until_next: float) -> None:
        """Note that the database has lost the message ``id``, the last that the client was sent."""
        self.lost = id
        self.until_next = until_next
        self.lost_at = CLOCK.now
