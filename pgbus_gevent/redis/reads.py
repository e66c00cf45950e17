"""Reads of recent messages from the logs in Redis. What Redis does not know for certain, PostgreSQL is asked.

An entry of a log is a message with the id of the one before it. So the entries show whether one is missing: because Redis was
flushed or full, has failed over to a replica that lagged behind, or has trimmed the log. Two things do not show in the entries:

- Whether there are newer messages. So an answer from Redis never says that there are none, except after the messages that a look
  was for: newer ones come as wakes, or with a new reign.
- Whether the last entry is the newest message of its stream, for a client that wants only what is new. It counts as that only if it
  was written in the reign of the relay that is at work now; a relay begins a new reign if Redis may have lost something.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any, NamedTuple

from ..core.board import Board
from ..core.retries import Trouble
from ..core.rows import MessageReads, Opening, OpenQuestion, PageRows, Row
from ..core.wakes import NewMessage, parse
from ..errors import RedisUnavailable
from ..messages import MAX_ID
from .links import Command, Pipes, of_another_type
from .refusals import failure
from .session import RedisSession, Wakes
from .urls import RedisURL

logger = logging.getLogger("pgbus_gevent.redis")

ENTRIES = 64
"""The most entries that are read of one log at once; each has at most 8,000 bytes."""

TIMEOUT = 1.0
"""Seconds for an answer of Redis. After that, PostgreSQL is asked."""

REST = 5.0
"""The longest time in seconds for which Redis is not asked again after a failure."""


class Entry(NamedTuple):
    """An entry of a log: the reign in which it was written, and the message."""

    reign: str
    message: NewMessage

    @property
    def row(self) -> Row:
        _, id, prev_id, created_at, event, data, visible_to, exclude, trace = self.message
        return Row(id, event, data, visible_to, exclude, prev_id, created_at, trace)


class RedisReads:
    """Answers openings and pages from Redis if it can, and otherwise from the next source. Any number of greenlets use it.

    The board says for which streams an answer must come from the database: those in doubt, and for a look those whose clients
    wait to know whether there is a newer message.
    """

    def __init__(
        self, url: RedisURL, source: MessageReads, wakes: Wakes, board: Board, *, clock: Callable[[], float] = monotonic
    ) -> None:
        self._url = url
        self._source = source
        self._wakes = wakes
        self._board = board
        self._clock = clock
        self._idle: list[Pipes] = []
        self._rest_until = 0.0
        self._trouble = Trouble(logger, "cannot read from Redis, asking PostgreSQL: %s")
        self.answered = {"redis": 0, "postgres": 0}
        """How many openings and pages came from where."""

    # the reader's questions

    def openings(self, questions: Sequence[OpenQuestion], *, limit: int, size: int) -> list[Opening]:
        """Return the state of each stream, and its newest messages."""
        session = self._session()
        wanted = [n for n, each in enumerate(questions) if self._is_certain(each.stream)]
        # Before Redis is asked: a client that comes meanwhile is not answered by this opening.
        starts = {n: self._highest_start(questions[n].stream) for n in wanted}
        found: dict[int, Opening] = {}
        if session is not None and session.logs:
            commands: list[tuple[str, Command]] = []
            for n in wanted:
                key, deep = session.keys.log(questions[n].stream), questions[n] != (questions[n].stream, None, None)
                commands.append((key, ("XREVRANGE", key, "+", "-", "COUNT", min(ENTRIES, limit) if deep else 1)))
            for n, answer in zip(wanted, self._ask(commands), strict=False):
                entries = self._entries(session, questions[n].stream, reversed(answer or []))
                opening = _opening(questions[n], entries, session.reign)
                # A client that knows of a newer message has to be told by the database whether that exists.
                if opening is not None and opening.head >= starts[n] and session is self._session():
                    found[n] = opening
        rest = [n for n in range(len(questions)) if n not in found]
        if rest:
            found.update(
                zip(rest, self._source.openings([questions[n] for n in rest], limit=limit, size=size), strict=True)
            )
        self._count(len(questions), len(rest))
        return [found[n] for n in range(len(questions))]

    def pages(self, after: Sequence[tuple[str, int]], *, limit: int, size: int) -> list[PageRows]:
        """Return the messages above each cursor, complete from the cursor on."""
        session = self._session()
        wanted = [n for n, (stream, cursor) in enumerate(after) if cursor and self._is_certain(stream)]
        found: dict[int, PageRows] = {}
        announced = {n: self._announced(*after[n]) for n in wanted}
        most = min(ENTRIES, limit)
        if session is not None and wanted:
            commands: list[tuple[str, Command]] = []
            for n in wanted:
                key = session.keys.log(after[n][0])
                commands.append((key, ("XRANGE", key, f"{after[n][1]}-0", "+", "COUNT", most)))
            for n, answer in zip(wanted, self._ask(commands), strict=False):
                entries = self._entries(session, after[n][0], answer or [])
                reign = session.reign if session.logs and len(entries) < most else None
                page = _page(after[n][1], entries, reign, announced[n])
                if page is not None and session is self._session():
                    found[n] = page
        rest = [n for n in range(len(after)) if n not in found]
        if rest:
            found.update(zip(rest, self._source.pages([after[n] for n in rest], limit=limit, size=size), strict=True))
        self._count(len(after), len(rest))
        return [found[n] for n in range(len(after))]

    def _session(self) -> RedisSession | None:
        session = self._wakes.session
        return session if session is not None and session.fresh and self._clock() >= self._rest_until else None

    def _is_certain(self, stream: str) -> bool:
        """Whether the truth about this stream need not be asked for: nothing is in doubt, and no client waits to be told it."""
        log = self._board.log(stream)
        if log is None or log.in_doubt:
            return False
        return not log.is_open or all(each.cursor is not None for each in self._board.waiting(log))

    def _highest_start(self, stream: str) -> int:
        """Return the highest cursor from which a client of a stream wants to start. An invalid cursor counts as the highest."""
        log = self._board.log(stream)
        waiting = self._board.waiting(log) if log is not None else {}
        return max((MAX_ID if each.place.invalid_cursor else each.start or 0 for each in waiting), default=0)

    def _announced(self, stream: str, cursor: int) -> int | None:
        """Return the id for which there is a look at a stream, or None if it is for another reason, or for a client's page."""
        log = self._board.log(stream)
        return log.announced if log is not None and log.head == cursor < log.announced else None

    def _count(self, all_of_them: int, postgres: int) -> None:
        self.answered["postgres"] += postgres
        self.answered["redis"] += all_of_them - postgres

    # Redis

    def _entries(self, session: RedisSession, stream: str, answer: Iterable[Any]) -> list[Entry | None]:
        """Return the entries in this order; None for each that has no message, or was not made by a relay of this database."""
        entries: list[Entry | None] = []
        for name, fields in answer:
            sealed = session.keys.open(fields[1]) if len(fields) == 2 else None
            message = parse(sealed.payload) if sealed is not None else None
            is_genuine = isinstance(message, NewMessage) and message.stream == stream and name == b"%d-0" % message.id
            if sealed is not None and isinstance(message, NewMessage) and is_genuine:
                entries.append(Entry(sealed.reign, message))
            else:
                entries.append(None)
        return entries

    def _ask(self, commands: Sequence[tuple[str, Command]]) -> list[Any]:
        """Send each command to the node of its name, and return the answers. Empty if Redis fails."""
        if not commands:
            return []
        pipes = None
        try:
            pipes = self._idle.pop() if self._idle else Pipes(self._url, timeout=TIMEOUT)
            answers = pipes.run(commands)
            # The relay removes a value of another type when it appends to this log.
            answers = [[] if of_another_type(answer) else answer for answer in answers]
            for answer in answers:
                if isinstance(answer, Exception):
                    raise failure("Redis", answer, "refuses to read a log")
        except RedisUnavailable as error:
            self._rest_until = self._clock() + REST * random.uniform(0.5, 1.0)
            self._trouble.begins(error)
            answers = []
            self.discard_idle()
        else:
            self._idle.append(pipes)
            self._trouble.ends()
            pipes = None
        finally:
            if pipes is not None:
                pipes.close()
        return answers

    def discard_idle(self) -> None:
        """Close the connections that nobody uses. Another server may be the right one now."""
        while self._idle:
            self._idle.pop().close()


def _unbroken(entries: Sequence[Entry | None]) -> list[Entry]:
    """Return the newest entries of which each names the one before it."""
    found: list[Entry] = []
    for entry in reversed(entries):
        if entry is None or (found and found[-1].message.prev_id != entry.message.id):
            break
        found.append(entry)
    return found[::-1]


def _opening(question: OpenQuestion, newest: Sequence[Entry | None], reign: str) -> Opening | None:
    """Return the opening of a stream, or None if its newest entries do not have it."""
    entries = _unbroken(newest)
    if not entries or entries[-1].reign != reign:
        return None
    head = entries[-1].message.id
    if question.cursor is None and question.replay is None:
        return Opening(head, 0, head, 0, head, [])
    first = entries[0].message
    if first.prev_id is None:
        entries = entries[1:]
    floor = first.id if first.prev_id is None else first.prev_id
    start = 0
    if question.replay is not None:
        if question.replay >= len(entries):
            return None
        start = entries[-question.replay - 1].message.id
    return Opening(head, 0, first.id, start, floor, [entry.row for entry in entries])


def _page(
    cursor: int, entries: Sequence[Entry | None], reign: str | None = None, announced: int | None = None
) -> PageRows | None:
    """Return the messages above a cursor, or None if the entries do not have the next one.

    If the entries are all of the log, ``reign`` is the present one, and ``announced`` the message that a look is for.
    """
    rows: list[Row] = []
    last = cursor
    for entry in entries:
        if entry is not None and entry.message.id <= cursor:
            continue
        if entry is None or entry.message.prev_id != last:
            break
        rows.append(entry.row)
        last = entry.message.id
    if not rows:
        return None
    newest = entries[-1]
    is_all = newest is not None and newest.message.id == last and newest.reign == reign
    # `more`: the reader asks again, and so in the end the database whether there are no newer ones.
    more = not (is_all and announced is not None and announced <= last)
    return PageRows(rows, 0, more, anchor=cursor)
