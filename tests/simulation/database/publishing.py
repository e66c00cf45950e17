"""Publishing, as in ``pgbus_gevent/database/sql/0002_publishing.sql``. Each function is named after the one that it models."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pgbus_gevent.errors import DatabaseError, InvalidArgument

from . import deferred, doorbell
from .ids import draw
from .locks import STREAM
from .statements import DRAWN, SERIALIZATION, Work
from .tables import EphemeralRow, MessageRow, RevocationRow
from .transactions import Transaction

if TYPE_CHECKING:
    from .server import Server

MINUTE = 60.0
_CONTROL_CHARACTERS = re.compile("[\u0001-\u001f\u007f-\u009f]")
_BAD_EVENT = re.compile("^pgbus:|[\r\n]")


class Outgoing(NamedTuple):
    """The arguments of a broadcast."""

    stream: str
    data: str
    event: str | None = None
    visible_to: str | None = None
    exclude: str | None = None
    key: str | None = None


def check(message: Outgoing) -> None:
    """Raise :class:`InvalidArgument` for a bad argument."""
    check_stream(message.stream)
    if message.event is not None and _BAD_EVENT.search(message.event):
        raise InvalidArgument(f"bad event name {json.dumps(message.event)}")
    for label in (message.visible_to, message.exclude):
        if label == "":
            raise InvalidArgument("a label is empty")
    if message.key is not None and not 1 <= len(message.key.encode()) <= 1000:
        raise InvalidArgument(f"bad key of {len(message.key.encode())} bytes")


def check_stream(stream: str) -> None:
    if not 1 <= len(stream.encode()) <= 255 or _CONTROL_CHARACTERS.search(stream):
        raise InvalidArgument(f"bad stream name {json.dumps(stream)}")


# appending


def lock_stream(server: Server, transaction: Transaction, stream: str) -> Work:
    key = (STREAM, server.lock_number(stream))
    if not server.locks.take(key, transaction):
        yield key


def broadcast(server: Server, transaction: Transaction, message: Outgoing) -> Work:
    check(message)
    if message.key is not None or transaction.has_one_snapshot:
        return (yield from append_once(server, transaction, [message]))
    yield from lock_stream(server, transaction, message.stream)
    ids, head = draw(server, transaction, message.stream, 1)
    yield DRAWN
    doorbell.touch_alone(transaction, message.stream, ids[0])
    yield from insert(server, transaction, ids, head, [message])
    return ids[0]


def broadcast_many(server: Server, transaction: Transaction, messages: Sequence[Outgoing], *, with_keys: bool) -> Work:
    for message in messages:
        check(message)
    if with_keys and messages:
        return (yield from append_once(server, transaction, messages))
    return (yield from append(server, transaction, messages))


def append(server: Server, transaction: Transaction, messages: Sequence[Outgoing]) -> Work:
    """Append messages of one stream. Returns the last id, None if there is nothing to append."""
    if not messages:
        return None
    if transaction.has_one_snapshot:
        return (yield from append_once(server, transaction, [message._replace(key=None) for message in messages]))
    stream = messages[0].stream
    yield from lock_stream(server, transaction, stream)
    ids, head = draw(server, transaction, stream, len(messages))
    yield DRAWN
    doorbell.touch(transaction, stream, ids[0], alone=len(messages) == 1)
    yield from insert(server, transaction, ids, head, messages)
    return ids[-1]


def append_once(server: Server, transaction: Transaction, messages: Sequence[Outgoing]) -> Work:
    """Append those messages whose key the stream does not have. Returns the id of the last of all, old or new."""
    stream = messages[0].stream
    yield from lock_stream(server, transaction, stream)
    snapshot = server.snapshot(transaction)
    fresh: list[Outgoing] = []
    for n, message in enumerate(messages):
        is_first = all(other.key != message.key for other in messages[:n])
        if message.key is None or (is_first and not server.messages.with_key(stream, message.key, snapshot)):
            fresh.append(message)
    ids: list[int] = []
    if fresh:
        ids, head = draw(server, transaction, stream, len(fresh))
        yield DRAWN
        doorbell.touch(transaction, stream, ids[0], alone=len(fresh) == 1)
        # A transaction with one snapshot may not see the message before.
        yield from insert(server, transaction, ids, None if transaction.has_one_snapshot else head, fresh)
        if fresh[-1] is messages[-1]:
            return ids[-1]
    key = messages[-1].key
    row = None if key is None else server.messages.with_key(stream, key, server.snapshot(transaction))
    return None if row is None else row.id


def insert(
    server: Server, transaction: Transaction, ids: Sequence[int], prev: int | None, messages: Sequence[Outgoing]
) -> Work:
    """Write the rows. Each names the one before it; the first names ``prev``."""
    first = len(transaction.triggers)
    for id, message in zip(ids, messages, strict=True):
        if transaction.has_one_snapshot and is_taken(server, id, message):
            raise DatabaseError("another session has written to the stream meanwhile: try again", SERIALIZATION)
        server.add_message(
            transaction,
            MessageRow(
                transaction,
                *(message.stream, id, prev, server.clock(), message.event or None),
                *(message.data, message.visible_to, message.exclude, message.key),
            ),
        )
        prev = id
    if transaction.immediate:
        yield from deferred.fire(server, transaction, first)


def is_taken(server: Server, id: int, message: Outgoing) -> bool:
    """Whether there is a row with the id or the key that the transaction does not see."""
    key = message.key
    return (key is not None and server.messages.with_key(message.stream, key, None) is not None) or any(
        row.stream == message.stream for row in server.messages.with_id(id, server.now(None))
    )


# on commit


def queue(server: Server, transaction: Transaction, messages: Sequence[Outgoing]) -> Work:
    """Queue messages for the commit; ``pgbus.broadcast_on_commit``."""
    for message in messages:
        check(message)
    first = len(transaction.triggers)
    transaction.settings["flush"] = "yes"
    server.assign_xid(transaction)
    for message in messages:
        leads = not transaction.outbox
        transaction.outbox.append(message)
        transaction.on_undo(lambda: _unqueue(transaction))
        if leads:
            deferred.add(transaction, None)
    if transaction.immediate:
        yield from deferred.fire(server, transaction, first)


def _unqueue(transaction: Transaction) -> None:
    transaction.outbox.pop()


def flush(server: Server, transaction: Transaction) -> Work:
    """Append what the transaction has queued, stream by stream, in the order of their locks."""
    transaction.settings["flush"] = ""
    mine = list(transaction.outbox)
    if not mine:
        return
    transaction.outbox.clear()
    transaction.on_undo(lambda: transaction.outbox.extend(mine))
    streams = sorted({message.stream for message in mine}, key=lambda name: (server.lock_number(name), name.encode()))
    for stream in streams:
        batch = [message for message in mine if message.stream == stream]
        if len(batch) == 1 or any(message.key is not None for message in batch):
            for message in batch:
                yield from broadcast(server, transaction, message)
        else:
            yield from append(server, transaction, batch)


# ephemeral messages, and others that are not in the order


def ephemeral(server: Server, transaction: Transaction, message: Outgoing) -> Work:
    """Send a message to those who are connected; ``pgbus.broadcast_ephemeral``."""
    number = server.draw(server.ephemeral_ids, transaction)
    check(message)
    stream, event = message.stream, message.event or None
    payload = None
    if len(message.data.encode()) < doorbell.LARGE:
        payload = json_text(["ephemeral", stream, number, event, message.data, message.visible_to, message.exclude])
    if payload is None or len(payload.encode()) > doorbell.LARGEST:
        if not transaction.has_one_snapshot:
            prune_ephemerals(server, transaction, 100)
        row = EphemeralRow(
            transaction, server.clock(), stream, event, message.data, message.visible_to, message.exclude
        )
        server.add(server.ephemerals, number, row, transaction)
        payload = json_text(["large", stream, number])
    told = 2 * len(payload.encode()) + int(transaction.setting("told") or 0)
    if told < server.queue_pages * 2048 and server.can_notify:
        transaction.settings["told"] = str(told)
        doorbell.notify_stream(server, transaction, stream, payload)
    return
    yield


def prune_ephemerals(server: Server, transaction: Transaction, most: int) -> int:
    """Remove large ephemeral messages that are older than a minute. Returns how many were removed."""
    snapshot = server.snapshot(transaction)
    oldest = sorted(server.ephemerals.items(snapshot))[:most]
    old = [row for _, row in oldest if row.created_at < server.clock() - MINUTE and row.died is None]
    for row in old:
        server.remove(row, transaction)
    return len(old)


def disconnect(server: Server, transaction: Transaction, owner: str) -> Work:
    if not owner:
        raise InvalidArgument("bad owner: it must not be empty")
    id = server.random_id()
    xid = server.assign_xid(transaction)
    server.add(server.revocations, id, RevocationRow(transaction, id, owner, server.clock(), xid), transaction)
    ring_control(server, transaction)
    return
    yield


def ring_control(server: Server, transaction: Transaction) -> bool:
    if server.can_notify:
        doorbell.notify(transaction, server.control, '["control"]')
    return server.can_notify


def notify_by_hand(transaction: Transaction, channel: str, payload: str) -> Work:
    doorbell.notify(transaction, channel, payload)
    return
    yield


def json_text(values: Sequence[object]) -> str:
    """Return what ``json_build_array(…)::text`` returns."""
    return json.dumps(values, ensure_ascii=False, separators=(", ", " : "))
