"""Judges ephemeral messages: they come in their order and at most once, and while nothing disturbs the workers, none is missing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .ledger import Message
from .loop import CLOCK
from .seat import Failure, Seat

if TYPE_CHECKING:
    from .oracle import Oracle

PROMPT = 1.2
"""Seconds within which a message arrives while there is calm and a steward: it looks every 0.4 s."""


class Whispers:
    """The ephemeral messages that were sent, in the order of their commits, which their numbers follow."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._by_data: dict[str, Message] = {}
        self._streams: dict[str, list[Message]] = {}

    def sent(self, message: Message) -> None:
        """Note one."""
        message.id, message.seen_at = len(self._by_data) + 1, CLOCK.now
        self._by_data[message.data] = message
        self._streams.setdefault(message.stream, []).append(message)

    def judge(self, seat: Seat, data: str, event: str) -> None:
        """A client was sent one."""
        oracle, name, stream = self._oracle, seat.rights.name, seat.stream
        oracle.figures.ephemerals += 1
        message = self._by_data.get(data)
        if message is None or (message.event or "") != event:
            raise Failure("ephemeral", f"{name} got {event!r} {data!r}, which nobody sent")
        if message.stream != stream:
            raise Failure("forbidden", f"{name} got {data!r} of {message.stream} in {stream}")
        if not oracle.may_see(seat, message):
            raise Failure("forbidden", f"{name} got {data!r}, for {message.visible_to}")
        if message.id <= seat.heard:
            raise Failure("ephemeral", f"{name} got {data!r} of {stream} after number {seat.heard}")
        for other in self._unheard(seat):
            if other.id < message.id:
                raise Failure("ephemeral", f"{name} got {data!r} of {stream}, and not {other.data!r}")
        seat.heard = message.id

    def look(self, seat: Seat) -> None:
        """See whether a client lacks one for too long."""
        for message in self._unheard(seat):
            if CLOCK.now - message.seen_at > PROMPT:
                raise Failure("ephemeral", f"{seat.rights.name} did not get {message.data!r} of {seat.stream}")

    def _unheard(self, seat: Seat) -> Iterator[Message]:
        """Return those that a client lacks although nothing has disturbed them."""
        oracle = self._oracle
        for message in reversed(self._streams.get(seat.stream, ())):
            if message.id <= seat.heard or message.seen_at <= max(seat.ready, oracle.calm_from, oracle.troubled_at):
                return
            if oracle.is_entitled(seat, message):
                yield message
