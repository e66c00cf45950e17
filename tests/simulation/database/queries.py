"""The methods of ``pgbus_gevent.database.queries.Queries``, ``Stewardship`` and ``Pruning``, answered by the model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pgbus_gevent.core import rows
from pgbus_gevent.messages import Message

from . import publishing, reading, retention, stewardship
from .publishing import Outgoing
from .statements import Statement, Work
from .transactions import Snapshot, Transaction

if TYPE_CHECKING:
    from .server import Server
    from .session import Session

_T = TypeVar("_T")


def _no_wait(statement: Statement) -> None:
    """Raise :class:`Blocked` if the statement waits."""


class _Asking:
    """Runs statements, each in a transaction and a session of its own, or all in ``session``.

    ``wait`` is called with a statement that has not ended, and returns when it has (:attr:`Statement.on_end`).
    ``before`` is called before each statement with its name; it may raise, as for a server that is away, or wait.
    ``after`` is called with the name when the statement was answered, and may do the same.
    """

    def __init__(
        self,
        server: Server,
        *,
        session: Session | None = None,
        wait: Callable[[Statement], None] = _no_wait,
        before: Callable[[str], None] = lambda name: None,
        after: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.server = server
        self._session = session
        self._wait, self._before, self._after = wait, before, after

    def _run(self, name: str, work: Callable[[Transaction], Work]) -> Any:
        self._before(name)
        session = self._session or self.server.session()
        try:
            statement = session.run(work)
            if not statement.done:
                self._wait(statement)
            value = statement.result()
        finally:
            if self._session is None and session.statement is None:
                session.close()
        self._after(name)
        return value

    def _read(self, name: str, question: Callable[[Snapshot], _T]) -> _T:
        def work(transaction: Transaction) -> Generator[Any, None, _T]:
            return question(self.server.snapshot(transaction))
            yield

        found: _T = self._run(name, work)
        return found

    def _do(self, name: str, action: Callable[[Transaction], _T]) -> _T:
        def work(transaction: Transaction) -> Generator[Any, None, _T]:
            return action(transaction)
            yield

        done: _T = self._run(name, work)
        return done


class Queries(_Asking):
    """Answers as :class:`pgbus_gevent.database.queries.Queries` does."""

    def broadcast(self, stream: str, data: str, publication: Any = ()) -> int:
        message = Outgoing(stream, data, *publication)
        return int(self._run("broadcast", lambda own: publishing.broadcast(self.server, own, message)))

    def broadcast_many(
        self, stream: str, data: Sequence[str], publication: Any = (), keys: Sequence[str | None] | None = None
    ) -> int | None:
        event, visible_to, exclude = (*publication, None, None, None)[:3]
        messages = [
            Outgoing(stream, text, event, visible_to, exclude, None if keys is None else keys[n])
            for n, text in enumerate(data)
        ]
        found = self._run(
            "broadcast_many",
            lambda own: publishing.broadcast_many(self.server, own, messages, with_keys=keys is not None),
        )
        return None if found is None else int(found)

    def broadcast_ephemeral(self, stream: str, data: str, publication: Any = ()) -> None:
        message = Outgoing(stream, data, *publication[:3])
        self._run("broadcast_ephemeral", lambda own: publishing.ephemeral(self.server, own, message))

    def broadcast_batch(self, messages: Sequence[Any]) -> None:
        """Queue the messages for the commit, and send the ephemeral ones, in one statement."""

        def work(own: Transaction) -> Work:
            for message in messages:
                outgoing = Outgoing(*message[:5])
                if message.ephemeral:
                    yield from publishing.ephemeral(self.server, own, outgoing)
                else:
                    yield from publishing.queue(self.server, own, [outgoing])

        if messages:
            self._run("broadcast_batch", work)

    def disconnect(self, owner: str) -> None:
        self._run("disconnect", lambda own: publishing.disconnect(self.server, own, owner))

    def ping(self) -> None:
        self._read("ping", lambda snapshot: None)

    def last_ids(self, streams: Sequence[str]) -> list[int]:
        return self._read("last_ids", lambda at: [reading.last_id(self.server, at, name) for name in streams])

    def last_id(self, stream: str) -> int:
        return self._read("last_id", lambda at: reading.last_id(self.server, at, stream))

    def read_after(self, stream: str, after: int, limit: int) -> list[Message]:
        return self._read("read_after", lambda at: reading.read_after(self.server, at, stream, after, limit))

    def revocations(self, after: rows.Mark | None = None, *, recent: bool = False) -> rows.Revoked:
        return self._read("revocations", lambda at: reading.revocations(self.server, at, after, recent))

    def ring_control(self) -> bool:
        return self._do("ring_control", lambda own: publishing.ring_control(self.server, own))

    def moved(self, heads: dict[str, int], pruned: Collection[str] = ()) -> tuple[int, dict[str, int]]:
        return self._read("moved", lambda at: reading.moved(self.server, at, heads, pruned))

    def inventory(self, ranges: Sequence[tuple[str, int, int]]) -> list[tuple[int, int, int]]:
        return self._read("inventory", lambda at: reading.inventory(self.server, at, ranges))

    def tail(
        self, above: int, holes: Sequence[int], streams: Sequence[str] | None, *, limit: int
    ) -> list[rows.TailRow]:
        return self._read("tail", lambda at: reading.tail(self.server, at, above, holes, streams, limit))

    def pages(self, after: Sequence[tuple[str, int]], *, limit: int, size: int) -> list[rows.PageRows]:
        return self._read("pages", lambda at: reading.pages(self.server, at, after, limit, size))

    def openings(self, questions: Sequence[rows.OpenQuestion], *, limit: int, size: int) -> list[rows.Opening]:
        return self._read("openings", lambda at: reading.openings(self.server, at, questions, limit, size))

    def ephemerals(self, ids: Sequence[int]) -> dict[int, rows.EphemeralRow]:
        return self._read("ephemerals", lambda at: reading.ephemerals(self.server, at, ids))


class Stewardship(_Asking):
    """Answers as :class:`pgbus_gevent.database.stewardship.Stewardship` does. ``answered`` is set by the caller."""

    answered = 0.0

    def duty(self, question: rows.DutyQuestion) -> rows.DutyAnswer:
        return self._do("duty", lambda own: stewardship.duty(self.server, own, question))

    def leave_duty(self, me: int) -> None:
        self._do("leave_duty", lambda own: stewardship.leave(self.server, me))

    def ids(
        self,
        question: rows.DutyQuestion,
        above: int | None,
        holes: Sequence[tuple[int, int]],
        *,
        bind: bool,
        limit: int,
    ) -> rows.IdTailRows:
        def ask(own: Transaction) -> rows.IdTailRows:
            at = self.server.snapshot(own)
            ended_below, last = at.xmin, self.server.message_ids.last_value
            return rows.IdTailRows(
                stewardship.duty(self.server, own, question),
                *(ended_below, last, self.server.assign_xid(own) if bind else None),
                *(reading.in_ranges(self.server, at, holes, limit), reading.ids_above(self.server, at, above, limit)),
            )

        return self._do("ids", ask)

    def ring_for(self, ids: Sequence[int]) -> bool:
        return self._do("ring_for", lambda own: reading.ring_for(self.server, own, ids))

    def ring_everybody(self) -> bool:
        return self._do("ring_everybody", lambda own: reading.ring_everybody(self.server, own))

    def wakes(self, ids: Sequence[int], *, size: int) -> list[tuple[int, str, str]]:
        return self._read("wakes", lambda at: reading.wakes(self.server, at, ids, size))


class Pruning(_Asking):
    """Removes messages. Each stream has its own age and number, which the caller gives."""

    def prune(
        self,
        streams: Sequence[str],
        ages: Sequence[float],
        counts: Sequence[int | None] | None = None,
        limit: int = 1000,
    ) -> list[retention.Pruned]:
        found: list[retention.Pruned] = self._run(
            "prune", lambda own: retention.prune(self.server, own, streams, ages, counts, limit)
        )
        return found

    def forget(self, below: str | None, unused: float, limit: int = 1000) -> str | None:
        found: str | None = self._run("forget", lambda own: retention.forget(self.server, own, below, unused, limit))
        return found

    def below(self, name: str | None, limit: int) -> list[str]:
        return self._read("below", lambda at: retention.below(self.server, at, name, limit))

    def prune_ephemerals(self, limit: int) -> int:
        return self._do("prune_ephemerals", lambda own: publishing.prune_ephemerals(self.server, own, limit))
