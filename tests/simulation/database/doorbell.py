"""The doorbell: which transaction rings at its commit, and what it says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pgbus_gevent.core.buckets import bucket_of, channel

from . import publishing
from .locks import BELL
from .statements import Work
from .tables import MessageRow
from .transactions import Transaction

if TYPE_CHECKING:
    from .server import Server

LARGE = 7800
"""Bytes of data from which on a notification does not carry a message."""
LARGEST = 7900
"""Bytes of the longest payload that is sent."""
LONG_LIST = 5000
"""Bytes of the names of the streams that moved from which on no more are noted."""
ANY = "*"


def touch(transaction: Transaction, stream: str, id: int, *, alone: bool) -> None:
    """Note that the transaction has appended to a stream; ``id`` is its first message there."""
    name = stream + "\n"
    moved = transaction.setting("moved")
    if transaction.setting("ring"):
        if moved.endswith(ANY) or f"\n{name}" in f"\n{moved}":
            return
        moved = ANY if len(moved.encode()) > LONG_LIST else moved + name
    else:
        transaction.settings["ring"] = str(id)
        moved = "" if alone else name
    transaction.settings["moved"] = moved


def touch_alone(transaction: Transaction, stream: str, id: int) -> None:
    """The same, as ``broadcast`` itself does: a transaction that has rung keeps its list."""
    if transaction.setting("ring"):
        touch(transaction, stream, id, alone=True)
    else:
        transaction.settings["ring"] = str(id)


def ring(server: Server, transaction: Transaction, row: MessageRow) -> Work:
    """The trigger of the row that rings; ``pgbus._ring``."""
    if transaction.setting("flush"):
        yield from publishing.flush(server, transaction)
    if may_ring(server, transaction) and server.can_notify:
        moved = transaction.setting("moved")
        payload = None
        if not moved and row.size < LARGE:
            payload = wake(row)
        if payload is not None and len(payload.encode()) <= LARGEST:
            notify_stream(server, transaction, row.stream, payload)
        else:
            notify_moved(server, transaction, row.stream, moved)
    transaction.settings["ring"] = ""


def may_ring(server: Server, transaction: Transaction) -> bool:
    """Whether the transaction gets a bell without waiting."""
    pause = server.ring_pause.last or 0
    if pause == 0:
        return server.locks.take((BELL, 0), transaction) or server.locks.take((BELL, 1), transaction)
    now = round(server.clock() * 1000)
    if abs(now - (server.last_ring.last or 0)) < pause or not server.locks.take((BELL, 0), transaction):
        return False
    server.last_ring.set(now)
    return True


def wake(row: MessageRow) -> str:
    """Return the payload that carries a message."""
    created_at = int(row.created_at) if row.created_at == int(row.created_at) else row.created_at
    content = (row.event, row.data, row.visible_to, row.exclude)
    return publishing.json_text(["message", row.stream, row.id, row.prev_id, created_at, *content])


def notify(transaction: Transaction, name: str, payload: str) -> None:
    """NOTIFY. Equal notifications of one transaction are sent once."""
    if (name, payload) not in transaction.notifications:
        transaction.notifications.append((name, payload))


def notify_stream(server: Server, transaction: Transaction, stream: str, payload: str) -> None:
    notify(transaction, channel(server.doorbell, bucket_of(stream)), payload)


def notify_moved(server: Server, transaction: Transaction, stream: str, moved: str) -> None:
    """Notify for a ring that does not carry its message: on the channel of each bucket, the streams that moved."""
    if not moved.endswith(ANY):
        names = moved.rstrip("\n").split("\n") if moved else []
        if stream not in names:
            names.insert(0, stream)
        if len(names) == 1:
            notify_stream(server, transaction, names[0], publishing.json_text(["moved", names[0]]))
            return
        for bucket in sorted(set(map(bucket_of, names))):
            own = [name for name in names if bucket_of(name) == bucket]
            payload = json.dumps(["moved", *own], ensure_ascii=False, separators=(",", ":"))
            if len(payload.encode()) <= LARGEST:
                notify_stream(server, transaction, own[0], payload)
            else:
                moved = ANY
    if moved.endswith(ANY):
        notify(transaction, server.control, '["moved"]')
