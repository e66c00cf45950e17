"""The lease of the steward, as ``pgbus._duty``. It is in sequences, so no rollback takes it back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgbus_gevent.core.rows import DutyAnswer, DutyQuestion

from .locks import ELECTION

if TYPE_CHECKING:
    from .server import Server
    from .transactions import Transaction


def duty(server: Server, transaction: Transaction, question: DutyQuestion) -> DutyAnswer:
    """Ask who is the steward, renew the lease of the one that asks if it is, or let it become the steward."""
    now = round(server.clock() * 1000)
    lease = round(question.lease * 1000)
    own = now * 16 + question.rank * 4 + question.rings * 2 + question.hears
    sign = server.steward_sign.last or 0
    leads = (server.steward.last or 0) == question.me
    age, theirs, hears = abs(now - sign // 16), sign // 4 % 4, bool(sign % 2)
    stands = age < lease and question.rank <= theirs and not (question.hears and not hears and question.rank == theirs)
    if not leads and question.may_lead and not stands and server.locks.take(ELECTION, transaction):
        server.steward.set(question.me)
        leads, sign = True, 0
    rings, shown = question.rings, 0
    leads = leads and question.may_lead
    if leads:
        if abs(own - sign) >= 1600 or own % 16 != sign % 16:
            server.steward_sign.set(own)
    else:
        rings, shown = sign % 4 >= 2, age
        if question.hears and abs(now - (server.steward_company.last or 0)) >= 500:
            server.steward_company.set(now)
    company = abs(now - (server.steward_company.last or 0)) < 10_000
    return DutyAnswer(leads, None if not leads and sign == 0 else shown / 1000, rings, company)


def leave(server: Server, me: int) -> None:
    """Give the lease to the next one that asks."""
    if server.steward.last == me:
        server.steward_sign.set(0)
