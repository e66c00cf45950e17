"""Reads from a standby where its answer is as good as that of the primary, and from the primary otherwise.

Ids decide. Within a stream, ids follow commits, and a standby replays commits in their order. So a standby that has a message has
all messages of the stream before it. The log's head came from the primary, or from a notification. A page up to the head, or to
any message below it, is therefore complete. Nothing above the head is taken from a standby, which may show a commit before the
primary does. If a log went beyond the primary, it would look as if the primary had lost messages.

The absence of messages is believed only if the standby has replayed the position in the WAL that the primary had when the read
was asked for. That a stream has lost messages is only believed of the primary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Protocol, TypeVar

from ..core.registry import Registry
from ..core.rows import Opening, OpenQuestion, PageRows, TailRow
from ..core.standby import Mark
from ..errors import DatabaseError
from .standby_watch import Reads, Session, Standby, StandbyWatch

T = TypeVar("T")


class Primary(Reads, Protocol):
    """The reads of the primary; :class:`pgbus_gevent.database.queries.Queries` has them."""

    def tail(self, above: int, holes: Sequence[int], streams: Sequence[str] | None, *, limit: int) -> list[TailRow]: ...


class StandbyReads:
    """The source of the reader and the sweeper. Its reads mean what those of the primary mean.

    It yields in statements, and while it waits for the standby to catch up. Raises :class:`DatabaseError` only for the primary.
    """

    def __init__(self, primary: Primary, standby: Standby, watch: StandbyWatch, registry: Registry) -> None:
        self._primary = primary
        self._standby = standby
        self._watch = watch
        self._registry = registry
        self.counts = Counter({"primary": 0, "standby": 0})
        """How many reads each server has answered."""

    # the reader's

    def openings(self, questions: Sequence[OpenQuestion], *, limit: int, size: int) -> list[Opening]:
        """Ask the primary for the state of each stream, which costs it little, and the standby for the messages up to the head."""
        wanted = [n for n, question in enumerate(questions) if question.cursor is not None]
        if self._watch.fault or not wanted:
            return self._openings_of_primary(questions, limit, size)
        without_rows = [question._replace(cursor=None) for question in questions]
        openings = self._openings_of_primary(without_rows, limit, size)
        wanted = [n for n in wanted if max(questions[n].cursor or 0, openings[n].horizon) < openings[n].head]
        if not wanted:
            return openings
        asked = [questions[n]._replace(replay=None) for n in wanted]
        found = self._of_standby(lambda session: session.queries.openings(asked, limit=limit, size=size))
        merged = [_merged(openings[n], opening) for n, opening in zip(wanted, found or [], strict=False)]
        merged += [None] * (len(wanted) - len(merged))
        missing = [n for n, opening in zip(wanted, merged, strict=True) if opening is None]
        whole = self._openings_of_primary([questions[n] for n in missing], limit, size) if missing else []
        for n, opening in zip(wanted, merged, strict=True):
            openings[n] = opening or whole[missing.index(n)]
        return openings

    def _openings_of_primary(self, questions: Sequence[OpenQuestion], limit: int, size: int) -> list[Opening]:
        self.counts["primary"] += 1
        return self._primary.openings(questions, limit=limit, size=size)

    def pages(self, after: Sequence[tuple[str, int]], *, limit: int, size: int) -> list[PageRows]:
        """Ask the standby for messages below the heads, and the primary for those above, which are few.

        A page of the standby is never the last one, so that the next read asks again.
        """
        below = (
            {} if self._watch.fault else {n: head for n, one in enumerate(after) if (head := self._head_above(*one))}
        )
        asked = [after[n] for n in below]
        found = self._of_standby(lambda session: session.queries.pages(asked, limit=limit, size=size)) if asked else []
        pages: dict[int, PageRows] = {}
        for (n, head), page in zip(below.items(), found or [], strict=False):
            rows = [row for row in page.rows if row.id <= head]
            # Without rows, the standby lags, or the messages were pruned or lost. The primary knows.
            if rows:
                pages[n] = page._replace(rows=rows, more=True)
        rest = [n for n in range(len(after)) if n not in pages]
        if rest:
            self.counts["primary"] += 1
            answers = self._primary.pages([after[n] for n in rest], limit=limit, size=size)
            pages.update(zip(rest, answers, strict=True))
        return [pages[n] for n in range(len(after))]

    def _head_above(self, stream: str, cursor: int) -> int | None:
        """Return the head of the stream's log if it is above the cursor and not in doubt, else None."""
        log = self._registry.log(stream)
        if log is None or not log.is_open or log.in_doubt or cursor >= log.head:
            return None
        return log.head

    # the sweeper's

    def moved(self, heads: dict[str, int], pruned: Collection[str] = ()) -> tuple[int, dict[str, int]]:
        """Ask the standby, if it has everything that the primary has. The look that follows a difference asks the primary.

        If a log is in doubt, the primary is asked, because only its answer ends the doubt.
        """
        logs = [self._registry.log(stream) for stream in heads]
        doubtful = any(log is None or log.in_doubt for log in logs)
        answer = None if doubtful else self._if_fresh(lambda session: session.queries.moved(heads, pruned))
        if answer is None:
            self.counts["primary"] += 1
            return self._primary.moved(heads, pruned)
        mark, (_, found) = answer
        return mark.newest, found

    def inventory(self, ranges: Sequence[tuple[str, int, int]]) -> list[tuple[int, int, int]]:
        """Ask the standby, if it has everything that the primary has."""
        answer = self._if_fresh(lambda session: session.queries.inventory(ranges))
        if answer is not None:
            return answer[1]
        self.counts["primary"] += 1
        return self._primary.inventory(ranges)

    def tail(self, above: int, holes: Sequence[int], streams: Sequence[str] | None, *, limit: int) -> list[TailRow]:
        """Ask the primary, because a tail looks for messages that were committed milliseconds ago."""
        self.counts["primary"] += 1
        return self._primary.tail(above, holes, streams, limit=limit)

    # the standby

    def _of_standby(self, read: Callable[[Session], T], must_reach: Mark | None = None) -> T | None:
        """Return what ``read`` finds on a standby of our primary, or None. With a mark, only if the standby reaches it in time."""
        mark = None if self._watch.fault else must_reach or self._watch.recent()
        if mark is None:
            return None
        try:
            with self._standby.session() as session:
                if must_reach is not None and not self._watch.wait_for(session, mark).reaches(mark):
                    return None
                found = read(session)
                # After the read: a standby that is still one was one before, because a promotion is not taken back in a session.
                self._watch.judge(session.state(), mark)
        except DatabaseError as error:
            self._watch.failed(error)
            return None
        if self._watch.fault:
            return None
        self.counts["standby"] += 1
        return found

    def _if_fresh(self, read: Callable[[Session], T]) -> tuple[Mark, T] | None:
        """Return what ``read`` finds on a standby that has everything that the primary has now, or None."""
        if self._watch.fault or self._watch.late:
            return None
        mark = self._watch.renew()
        found = None if mark is None else self._of_standby(read, mark)
        return None if mark is None or found is None else (mark, found)


def _merged(state: Opening, found: Opening) -> Opening | None:
    """Return the state with the standby's messages up to its head. Return None if the standby does not have them all."""
    floor = max(found.floor, state.horizon)
    rows = [row for row in found.rows if floor < row.id <= state.head]
    if not rows or rows[-1].id != state.head or found.horizon > state.horizon:
        return None
    return state._replace(floor=floor, rows=rows)
