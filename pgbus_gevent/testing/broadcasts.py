"""Counting what is broadcast, at the database: by whomever, in SQL, in Python or over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..bus import Bus
from ..core.wakes import Ephemeral, parse
from ..database.notifications import ListenSession
from ..messages import Message


@contextmanager
def assert_broadcasts(bus: Bus, stream: str, n: int) -> Iterator[list[Message]]:
    """Fail unless exactly ``n`` messages of ``stream`` were committed within the block, ephemeral ones included.

    The list that it gives has them after the block: first the stored ones, in their order, then the ephemeral ones. Of one that is
    too large for a notification ``data`` is read back, which is possible for a minute.
    """
    settings = bus.settings
    found: list[Message] = []
    watermark = bus.stream(stream).last_id()
    ear = ListenSession(
        bus.database.url, connect_timeout=settings.connect_timeout, statement_timeout=settings.statement_timeout
    )
    try:
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
    # Notifications come in the order of their commits, and a session gets what is due before the answer to its statement.
    ear.ping()
    payloads, lost = ear.receive(0)
    assert not lost, "too many notifications came within the block to tell how many were broadcast"
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
