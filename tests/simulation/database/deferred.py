"""The deferred triggers, and the commit that runs them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from . import doorbell, publishing
from .locks import NOTIFYING
from .statements import LOGGED, TRIGGERED, Work
from .tables import MessageRow
from .transactions import Transaction

if TYPE_CHECKING:
    from .server import Server


@dataclass(eq=False)
class Trigger:
    """A trigger that is to run. ``row`` is the one that rings; a trigger without a row flushes the outbox."""

    row: MessageRow | None
    done: bool = False


def add(transaction: Transaction, row: MessageRow | None) -> None:
    """Queue a trigger for the commit."""
    trigger = Trigger(row)
    transaction.triggers.append(trigger)
    transaction.on_undo(lambda: transaction.triggers.remove(trigger))


def fire(server: Server, transaction: Transaction, first: int = 0) -> Work:
    """Run the triggers that wait, in the order in which they were queued, and those that they queue.

    A statement under SET CONSTRAINTS ALL IMMEDIATE runs only its own, which are those from the place ``first`` on.
    """
    while trigger := next((one for one in transaction.triggers[first:] if not one.done), None):
        trigger.done = True
        transaction.on_undo(partial(setattr, trigger, "done", False))
        if trigger.row is not None:
            yield from doorbell.ring(server, transaction, trigger.row)
        else:
            yield from publishing.flush(server, transaction)


def immediate(server: Server, transaction: Transaction) -> Work:
    """SET CONSTRAINTS ALL IMMEDIATE."""
    if not transaction.immediate:
        transaction.on_undo(lambda: setattr(transaction, "immediate", False))
    transaction.immediate = True
    yield from fire(server, transaction)


def commit(server: Server, transaction: Transaction) -> Work:
    """Commit: the triggers, the place in the order of the notifications, the WAL, and then all at once what others see."""
    yield from fire(server, transaction)
    if transaction.notifications:
        server.assign_xid(transaction)
        if not server.locks.take(NOTIFYING, transaction):
            yield NOTIFYING
    yield TRIGGERED
    server.log(transaction)
    yield LOGGED
    server.finish(transaction)


def nothing() -> Work:
    return
    yield
