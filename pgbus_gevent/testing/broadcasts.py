"""Counts broadcasts at the database, so those in SQL, in Python and over HTTP all count."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..bus import Bus
from ..core.wakes import Ephemeral, parse
from ..database.notifications import ListenSession
from ..messages import Message


@contextmanager
def assert_broadcasts(bus: Bus, stream: str, n: int) -> Iterator[list[Message]]:
    """Fail unless exactly ``n`` messages, durable or ephemeral, were committed to ``stream`` within the block.

    Yields a list that is empty at first. After the block, it has the messages: first the stored ones, in their order, then
    the ephemeral ones. The data of a large ephemeral message is read from the database, which keeps it for a minute.

    Raises :class:`AssertionError`, which lists the messages, and :class:`~pgbus_gevent.errors.DatabaseError`.
    """
    settings = bus.settings
    found: list[Message] = []
    watermark = bus.stream(stream).last_id()
    ear = ListenSession(
        bus.database.url, connect_timeout=settings.connect_timeout, statement_timeout=settings.statement_timeout
    )
    try:
        ear.follow([stream])
        yield found
        found += _stored(bus, stream, watermark)
        found += _ephemeral(bus, stream, ear)
    finally:
        ear.close()
    if len(found) != n:
        lines = "".join(f"\n  {_told(message)}" for message in found)
        raise AssertionError(
            f"{'1 message was' if len(found) == 1 else f'{len(found)} messages were'} broadcast to {stream!r}, not {n}"
            f"{':' if found else ''}{lines}"
        )


def _stored(bus: Bus, stream: str, watermark: int) -> Iterator[Message]:
    while page := bus.stream(stream).read_after(watermark):
        yield from page
        watermark = page[-1].id or watermark


def _ephemeral(bus: Bus, stream: str, ear: ListenSession) -> Iterator[Message]:
    # Notifications come in the order of their commits. A session gets all that are due before the answer to its statement.
    ear.ping()
    payloads, lost = ear.receive(0)
    assert not lost, "too many notifications came within the block to count the messages"
    for wake in map(parse, payloads):
        if isinstance(wake, Ephemeral) and wake.stream == stream:
            event, data, visible_to, exclude = wake[2:]
            if data is None:
                kept = bus.database.queries.ephemerals([wake.number]).get(wake.number)
                event, data, visible_to, exclude = kept[1:] if kept else (None, "", None, None)
            yield Message(stream, None, None, event, data, visible_to, exclude)


def _told(message: Message) -> str:
    data = message.data if len(message.data) <= 120 else f"{message.data[:120]}… ({len(message.data)} characters)"
    number = "ephemeral" if message.id is None else str(message.id)
    return f"{number} event={message.event!r} data={data!r}"
