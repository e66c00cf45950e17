"""Reads from the database for the clients that the rings cannot serve, a few statements at a time.

Reads are merged: whatever is asked for while others are under way goes into the next statement, one for many streams, and a page
is read once for all clients that need it. So ten thousand clients that come back at once cost a handful of statements.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Protocol
from weakref import WeakKeyDictionary

import gevent

from ..core.board import Board, Page
from ..core.client import Subscription
from ..core.events import Read
from ..core.kept_pages import KeptPages
from ..core.replay import History
from ..core.retries import Backoff, Trouble
from ..core.stream_log import StreamLog
from ..database import rows
from ..database.rows import Opening, OpenQuestion, question, replays
from ..errors import DatabaseError
from ..messages import MAX_ID

logger = logging.getLogger("pgbus_gevent.reader")

STREAMS_PER_READ = 64
BYTES_PER_STREAM = 128 * 1024
"""Together they bound what one statement brings into memory: 8 MB, and what is kept for a client that stops reading."""

PAGES_KEPT = 64
"""Pages that are kept for clients that need them a moment later; with the bytes of each, together 8 MB."""

KEEP_SECONDS = 5.0
"""How long they are kept."""

_PAUSES = 0.05, 2.0  # the first and the longest between tries while the database is away, in seconds


class Source(Protocol):
    """What the reader needs of the database; :class:`pgbus_gevent.database.queries.Queries` is one."""

    def openings(self, questions: Sequence[OpenQuestion], *, limit: int, size: int) -> list[Opening]: ...
    def pages(self, after: Sequence[tuple[str, int]], *, limit: int, size: int) -> list[rows.Page]: ...


_Looks = dict[StreamLog, list[Subscription]]


class Reader:
    """Two kinds of reads, by any number of greenlets that each run :meth:`run`.

    A *look* brings a log up to the table: for a stream that is new here, after a notification that did not carry its message, and
    for a client whose start only the database knows. A *page* is for clients below the ring; the dispatcher sends it.
    """

    def __init__(
        self,
        source: Source,
        board: Board,
        *,
        page_size: int = 500,
        ring_messages: int = 1000,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._source = source
        self._board = board
        self._page_size = page_size
        self._ring_messages = ring_messages
        self._clock = clock
        self._read = board.events.signal(Read)
        self._lowest_next: WeakKeyDictionary[StreamLog, bool] = WeakKeyDictionary()
        self._kept = KeptPages(PAGES_KEPT)
        self.reads = 0

    # the loop

    def run(self) -> None:
        """Read as long as there is something to read, for ever."""
        backoff = Backoff(_PAUSES[0], _PAUSES[1])
        trouble = Trouble(logger, "cannot read from the database, trying again: %s")
        kinds = [self._look_some, self._page_some]
        flag = self._board.reading
        while True:
            # Before the look at the board: what is added during a read sets it again.
            flag.clear()
            try:
                busy = kinds[0]() or kinds[1]()
                # By turns, as where many streams move there is always one more to look at.
                kinds.reverse()
            except DatabaseError as error:
                trouble.begins(error)
                gevent.sleep(backoff.next())
                continue
            backoff.reset()
            trouble.ends()
            if not busy and not flag.wait(KEEP_SECONDS if self._kept else None):
                self._kept.clear()

    def _tell(self, kind: str, found: Sequence[Opening | rows.Page], began: float) -> None:
        self.reads += 1
        if self._read.handlers:
            count = sum(len(one.rows) for one in found)
            self._read.emit(Read(kind, len(found), count, self._clock() - began))

    # looks

    def _look_some(self) -> bool:
        board = self._board
        with board.looks.taking(STREAMS_PER_READ) as logs:
            # Clients that come while the read is under way may know of newer messages than it sees: they wait for the next one.
            looks = {log: [each for each in board.waiting(log) if each.cursor is None] for log in logs}
            opening = {log: who for log, who in looks.items() if not log.is_open or replays(who)}
            self._open(opening)
            self._follow({log: who for log, who in looks.items() if log not in opening})
        for subscription in (each for who in looks.values() for each in who):
            if board.stop_waiting(subscription):
                board.ready.add(subscription)
        return bool(logs)

    def _open(self, looks: _Looks) -> None:
        """Ask for the state of streams that are new here, or of which a client wants more than the ring has."""
        if not looks:
            return
        began = self._clock()
        heads = {log: log.head for log in looks if log.is_open}
        questions = [question(log, who) for log, who in looks.items()]
        openings = self._source.openings(questions, limit=self._ring_messages, size=BYTES_PER_STREAM)
        self._tell("open", openings, began)
        for (log, who), asked, opening in zip(looks.items(), questions, openings, strict=True):
            if not log.is_open:
                log.open(
                    head=opening.head,
                    horizon=opening.horizon,
                    oldest=opening.oldest,
                    floor=opening.floor,
                    rows=opening.rows,
                )
                self._board.moved.add(log)
            current = log.head >= opening.head
            if not current:
                # It was open, and the answer is of newer messages than it has.
                self._board.looks.add(log)
            for subscription in who:
                subscription.verified = current
                if subscription.place.replay == asked.replay is not None:
                    subscription.start = opening.start
            if opening.head < heads.get(log, 0):
                # Before anybody starts from a ring that the table does not agree with.
                self._follow({log: []})

    def _follow(self, looks: _Looks) -> None:
        """Read on from the heads of streams that are open."""
        if not looks:
            return
        began = self._clock()
        starts = [(log, log.head, log.epoch, log.doubts) for log in looks]
        pages = self._source.pages(
            [(log.name, head) for log, head, _, _ in starts], limit=self._page_size, size=BYTES_PER_STREAM
        )
        self._tell("follow", pages, began)
        for (log, start, epoch, doubts), page in zip(starts, pages, strict=True):
            if log.epoch == epoch:
                log.settle(doubts)
            if log.epoch != epoch or self._is_lost(log, start, page):
                for subscription in looks[log]:
                    subscription.verified = False
                self._board.looks.add(log)
                continue
            self._board.note(log, page.horizon)
            # A notification may have brought some of it meanwhile.
            self._board.extend(log, page.rows)
            if page.more:
                self._board.looks.add(log)
            for subscription in looks[log]:
                subscription.verified = not page.more

    def _is_lost(self, log: StreamLog, head: int, page: rows.Page) -> bool:
        """Whether the table does not have the message that was the head before ``page`` was read; then the log was rewound.

        What was pruned is not lost, though its horizon may be forgotten one day too. The head was known before the statement
        began, and it had been committed by then, so the statement's snapshot cannot be too old to have it.
        """
        newest = max(page.anchor, page.horizon)
        if newest >= head or log.horizon >= head:
            return False
        logger.warning(
            "the last message of %r in the table is %d, but a message %d was announced: the table has"
            " lost some, or the notification was wrong",
            log.name,
            newest,
            head,
        )
        self._board.rewind(log, newest, horizon=page.horizon)
        return True

    # pages

    def _page_some(self) -> bool:
        board = self._board
        room = STREAMS_PER_READ - len(board.pages)  # the dispatcher has to keep up with us
        logs = board.behind.take(max(0, room))
        try:
            starts: dict[StreamLog, int] = {}
            for log in logs:
                start = self._page_start(log)
                kept = None if start is None else self._kept.find(log, start, self._clock() - KEEP_SECONDS)
                if start is None:
                    board.behind.done(log)
                elif kept is not None:
                    board.pages.add(Page(log, *kept))
                else:
                    starts[log] = start
            if starts:
                self._read_pages(starts)
        finally:
            # A log whose page is to be sent stays taken until that has been done.
            paged = {page.log for page in board.pages}
            board.behind.give_back([log for log in logs if log not in paged])
        return bool(logs)

    def _read_pages(self, starts: dict[StreamLog, int]) -> None:
        began = self._clock()
        states = [(log.head, log.epoch) for log in starts]
        after = [(log.name, start) for log, start in starts.items()]
        pages = self._source.pages(after, limit=self._page_size, size=BYTES_PER_STREAM)
        self._tell("page", pages, began)
        for (log, start), (head, epoch), page in zip(starts.items(), states, pages, strict=True):
            page = self._up_to_the_head(log, epoch, page)
            if not page.rows and start < head:
                # All up to the head was there before the read. What is not there now was pruned, or the log is ahead.
                if max(page.horizon, log.horizon) < head:
                    self._follow({log: []})
                page = page._replace(horizon=max(page.horizon, head))
            if log.epoch != epoch:
                continue  # the clients that wait have other cursors now, and are read for again
            history = History(
                page.rows, start=start, horizon=page.horizon, anchor=page.anchor, forgotten=page.forgotten
            )
            if page.rows:
                self._kept.keep(log, history, page.rows[-1].id, began)
            # When it is served again there may be more, so then it ends with its last message.
            self._board.pages.add(Page(log, history, page.rows[-1].id if page.rows and page.more else MAX_ID))

    def _up_to_the_head(self, log: StreamLog, epoch: int, page: rows.Page) -> rows.Page:
        """Without what the log does not know of: if the table lost that, the clients that were sent it would not be told."""
        if log.epoch == epoch:
            self._board.note(log, page.horizon)
        if not page.rows or page.rows[-1].id <= log.head:
            return page
        self._board.looks.add(log)
        return page._replace(rows=[row for row in page.rows if row.id <= log.head], more=True)

    def _page_start(self, log: StreamLog) -> int | None:
        """Whose turn it is: by turns the client with the lowest cursor and the one that has waited longest; None if none waits.

        The first makes sure that one page serves every client that stands within it; the second that one client far behind
        does not make the others wait until it has come up to them.
        """
        cursors = [each.cursor for each in self._board.waiting(log) if each.cursor is not None]
        if not cursors:
            return None
        lowest = self._lowest_next.get(log, True)
        self._lowest_next[log] = not lowest
        return min(cursors) if lowest else cursors[0]
