"""Judges where a client starts that comes without a cursor."""

from __future__ import annotations

from collections.abc import Sequence

from .ledger import Message
from .loop import CLOCK
from .seat import Failure, Seat


def judge_start(seat: Seat, start: int, history: Sequence[Message], excused_until: float, bound: float) -> None:
    """See that the client gets as many messages as it asked for, and no others that are older than its worker may believe.

    ``bound`` is how long a worker may not know of a message, in seconds, from ``excused_until`` on.
    """
    if seat.asked is not None or CLOCK.now <= excused_until:
        return
    retained = [message for message in history if not message.was_pruned]
    got = [message for message in retained if message.id > start]
    wanted = seat.replay or 0
    if len(got) < min(wanted, len(retained)):
        raise Failure(
            "lost", f"{seat.rights.name} asked for {wanted} of {seat.stream}, and starts below only {len(got)}"
        )
    known = seat.came_at - bound
    old = sum(message.seen_at < known for message in got)
    if known > excused_until and old > wanted:
        raise Failure(
            "order", f"{seat.rights.name} asked for {wanted} of {seat.stream}, and starts below {old} old ones"
        )
