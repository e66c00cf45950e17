"""The holes of the steward's tails: when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence

from streamer_parts import make_board

from pgbus_gevent.core.id_tail import Hole
from pgbus_gevent.core.rows import DutyAnswer, IdRow, IdTailRows
from pgbus_gevent.streamer import steward_sweeps
from pgbus_gevent.streamer.steward_ear import Ear
from pgbus_gevent.streamer.steward_sweeps import StewardSweeps


class Open:
    """A database in which the transaction that has drawn the id 5 stays open. It is the leader, too."""

    company = True

    def __init__(self) -> None:
        self.now = 100.0
        self.newest = 4
        self.asked: list[float] = []

    def ring_for(self, ids: Sequence[int]) -> bool:
        return True

    def ring_everybody(self) -> bool:
        return True

    def sign(self) -> None: ...

    def ask(self, above: int | None, holes: Sequence[Hole], *, bind: bool) -> tuple[float, IdTailRows]:
        if any(hole.low <= 5 <= hole.high for hole in holes):
            self.asked.append(self.now)
        ids = [] if above is None or self.newest <= above else [self.newest]
        duty = DutyAnswer(leads=True, age=0.0, rings=True, company=True)
        return self.now, IdTailRows(
            duty, 10, self.newest, 20 if bind else None, [], [IdRow(id, "orders") for id in ids]
        )


def test_while_notifications_never_end_old_holes_are_still_asked_for() -> None:
    database = Open()
    ear = Ear(None)  # type: ignore[arg-type]
    sweeps = StewardSweeps(database, make_board(), ear)
    sweeps.sweep(database, database.now)
    database.newest = 6
    for _ in range(200):
        database.now += 0.05
        ear.doorbell.set()
        sweeps.pause(0.0)
        sweeps.sweep(database, database.now)
    late = [at for at in database.asked if at > 105.0]
    assert len(late) >= 5.0 / steward_sweeps.RENEW / 2
