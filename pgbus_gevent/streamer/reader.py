"""Reads from the database for the clients that the rings cannot serve.

Reads are merged. Reads that are asked for while a statement runs go into the next one, which asks about many streams, and a page
is read once for all clients that need it. Ten thousand clients that come back at once therefore cost a handful of statements.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import monotonic
from weakref import WeakKeyDictionary

import gevent

from ..core.board import Board
from ..core.client import Subscription
from ..core.events import Read
from ..core.frames import agree
from ..core.kept_pages import KeptPages
from ..core.replay import Page, PageFrames, question, replays
from ..core.retries import Backoff, Trouble
from ..core.rows import MessageReads, Opening, PageRows
from ..core.stream_log import StreamLog
from ..errors import DatabaseError
from ..messages import MAX_ID

logger = logging.getLogger("pgbus_gevent.reader")

STREAMS_PER_READ = 64
"""The most streams in one statement."""

BYTES_PER_STREAM = 128 * 1024
"""About how many bytes a statement reads for one stream. A statement thus brings at most 8 MB into memory."""

PAGES_KEPT = 64
"""How many pages are kept for clients that need them a moment later; together at most 8 MB."""

KEEP_SECONDS = 5.0
"""How long pages are kept, in seconds."""

_PAUSES = 0.05, 2.0  # the first and the longest pause between tries while the database is away, in seconds


_Looks = dict[StreamLog, list[Subscription]]


class Reader:
    """Looks and pages. Any number of greenlets may run :meth:`run`. One at a time looks at a log, and one reads a page of it.

    A *look* brings a log up to the table: for a stream that is new to the worker, after a wake that did not carry its message,
    and for a client whose start only the database knows. A *page* holds older messages for clients below the ring; the
    dispatcher sends it.

    Readers yield only in statements and pauses. While a statement runs, the listener and the sweeper may extend the log, another
    reader may read a page of it, a rewind may start a new epoch, and clients may come and go. So each answer is compared with
    the log as it is after the statement: with its head, its epoch, and the subscriptions that still wait.
    """

    def __init__(
        self,
        source: MessageReads,
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
        self._trouble = Trouble(logger, "cannot read messages, trying again: %s")  # one for all greenlets that run this
        self.reads = 0

    # the loop

    def run(self) -> None:
        """Read what the board asks for, for ever."""
        backoff = Backoff(_PAUSES[0], _PAUSES[1])
        kinds = [self._page_some, self._look_some]
        flag = self._board.reading
        while True:
            # Cleared before work is taken from the board. Work that is added during a read sets the flag again.
            flag.clear()
            reads = self.reads
            # Each kind comes first in turn. When many streams move, there is always one more to look at; and a kept page can
            # be given out although looks fail.
            kinds.reverse()
            try:
                busy = kinds[0]() or kinds[1]()
            except DatabaseError as error:
                self._trouble.begins(error)
                gevent.sleep(backoff.next())
                continue
            # Work that took no statement, such as a page that was kept, does not say whether the outage is over.
            if self.reads != reads:
                backoff.reset()
                self._trouble.ends()
            if not busy and not flag.wait(KEEP_SECONDS if self._kept else None):
                self._kept.clear()

    def _report(self, kind: str, found: Sequence[Opening | PageRows], began: float) -> None:
        self.reads += 1
        if self._read.handlers:
            count = sum(len(one.rows) for one in found)
            self._read.emit(Read(kind, len(found), count, self._clock() - began))

    # looks

    def _look_some(self) -> bool:
        board = self._board
        with board.looks.taking(STREAMS_PER_READ) as logs:
            # Only clients that wait before the statement begins. One that comes during it may know of a newer message than the
            # statement sees, so it waits for the next look.
            hints = {log: log.take_hint() for log in logs}
            looks = {log: [each for each in board.waiting(log) if each.cursor is None] for log in logs}
            try:
                self._answer(looks)
            except BaseException:
                for log, head in hints.items():
                    if head is not None:
                        log.hint(head)
                raise
        for subscription in (each for waiting in looks.values() for each in waiting):
            if board.stop_waiting(subscription):
                board.ready.add(subscription)
        return bool(logs)

    def _answer(self, looks: _Looks) -> None:
        self._recheck([log for log in looks if log.recheck is not None])
        opening = {log: waiting for log, waiting in looks.items() if not log.is_open or replays(waiting)}
        self._open(opening)
        self._follow({log: waiting for log, waiting in looks.items() if log not in opening})

    def _recheck(self, logs: Sequence[StreamLog]) -> None:
        """Compare rings with the table. If a ring has another message, it was forged: start again below it."""
        if not logs:
            return
        began = self._clock()
        asked = [(log, log.head, log.epoch, *log.take_recheck()) for log in logs]
        after = [(log.name, cursor) for log, _, _, cursor, _ in asked]
        try:
            pages = self._source.pages(after, limit=self._page_size, size=BYTES_PER_STREAM)
        except BaseException:
            for log, _, epoch, cursor, _ in asked:
                if log.epoch == epoch:
                    log.doubt_above(cursor)
            raise
        self._report("follow", pages, began)
        for (log, head, epoch, cursor, frames), page in zip(asked, pages, strict=True):
            up_to = min(head, page.rows[-1].id) if page.more and page.rows else head
            if log.epoch != epoch:
                # Rewound during the statement, but perhaps not below a forged message. What is above that was told already.
                up_to = min(up_to, log.rewound_to)
            above = max(cursor, page.horizon)
            if not agree(frames, page.rows, above=above, up_to=up_to):
                logger.warning("a message of %r above %d was announced that the table does not have", log.name, above)
                newest, horizon = max(page.anchor, page.horizon), page.horizon
                if newest == above:  # otherwise the table has lost that message as well
                    horizon = max(log.horizon, horizon)
                self._board.rewind(log, newest, horizon=horizon)
                if log.head == newest:
                    self._board.extend(log, page.rows)
                self._board.looks.add(log)
            elif up_to < head and log.epoch == epoch:
                log.doubt_above(up_to)
                self._board.looks.add(log)

    def _open(self, looks: _Looks) -> None:
        """Open the logs of streams that are new here, and find the start of clients that want more than the ring has."""
        if not looks:
            return
        began = self._clock()
        heads = {log: log.head for log in looks if log.is_open}
        questions = [question(log, waiting) for log, waiting in looks.items()]
        openings = self._source.openings(questions, limit=self._ring_messages, size=BYTES_PER_STREAM)
        self._report("open", openings, began)
        for (log, waiting), asked, opening in zip(looks.items(), questions, openings, strict=True):
            if not log.is_open:
                log.open(
                    head=opening.head,
                    horizon=opening.horizon,
                    oldest=opening.oldest,
                    floor=opening.floor,
                    rows=opening.rows,
                )
                self._board.announce(log)
            current = log.head >= opening.head
            if not current:
                # The log was open before, and the table has newer messages.
                self._board.looks.add(log)
            for subscription in waiting:
                subscription.verified = current
                if subscription.place.replay == asked.replay is not None:
                    subscription.start = opening.start
            if opening.head < heads.get(log, 0):
                # The table has lost messages. The log is rewound before a client starts from its ring.
                self._follow({log: []})

    def _follow(self, looks: _Looks) -> None:
        """Read the messages above the heads of open logs."""
        if not looks:
            return
        began = self._clock()
        starts = [(log, log.head, log.epoch, log.doubts) for log in looks]
        pages = self._source.pages(
            [(log.name, head) for log, head, _, _ in starts], limit=self._page_size, size=BYTES_PER_STREAM
        )
        self._report("follow", pages, began)
        for (log, start, epoch, doubts), page in zip(starts, pages, strict=True):
            if log.epoch == epoch:
                log.settle(doubts)
            if log.epoch != epoch or self._is_lost(log, start, page) or _lacks_head(log, start, page):
                for subscription in looks[log]:
                    subscription.verified = False
                self._board.looks.add(log)
                continue
            self._board.note(log, page.horizon)
            if log.appended_at is None:
                log.appended_at = next((row.created_at for row in page.rows if row.id > log.head), None)
            # The listener may have added some of these rows during the statement, or forged ones; extend() ignores them.
            if any(row.id <= log.head and log.contradicts(row) for row in page.rows):
                self._board.looks.add(log)
            if page.rows and log.head == start:
                log.read(start, page.rows[-1].id)
            self._board.extend(log, page.rows)
            if page.more:
                self._board.looks.add(log)
            for subscription in looks[log]:
                subscription.verified = not page.more

    def _is_lost(self, log: StreamLog, head: int, page: PageRows) -> bool:
        """Whether the table has lost the message ``head``, which was the log's head before ``page`` was read.

        If so, rewind the log. A message that was pruned is not lost, unless its pruning is lost too: then the horizon is gone,
        although nobody has forgotten the stream. The statement's snapshot cannot be too old to have the head, because the head
        was committed before the statement began.
        """
        newest = max(page.anchor, page.horizon)
        if newest >= head or (log.horizon >= head and page.forgotten >= head):
            return False
        logger.warning(
            "the last message of %r in the table is %d, but a message %d was announced: the table has"
            " lost messages, or the notification was wrong",
            log.name,
            newest,
            head,
        )
        self._board.rewind(log, newest, horizon=page.horizon)
        return True

    # pages

    def _page_some(self) -> bool:
        board = self._board
        room = STREAMS_PER_READ - len(board.pages)  # bounds the pages that wait for the dispatcher
        logs = board.behind.take(max(0, room))
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
        try:
            if starts:
                self._read_pages(starts)
        finally:
            # Only the logs without a page. The others stay taken until Board.served(), and then another reader may have them.
            board.behind.give_back(starts)
        return bool(logs)

    def _read_pages(self, starts: dict[StreamLog, int]) -> None:
        """Read a page for each log, and remove the log from ``starts`` once its page is on the board."""
        began = self._clock()
        states = [(log.head, log.epoch) for log in starts]
        after = [(log.name, start) for log, start in starts.items()]
        pages = self._source.pages(after, limit=self._page_size, size=BYTES_PER_STREAM)
        self._report("page", pages, began)
        for (log, start), (head, epoch), page in zip(list(starts.items()), states, pages, strict=True):
            page = self._up_to_the_head(log, epoch, page)
            if not page.rows and start < head:
                # All messages up to the head were committed before the read. If they are missing, they were pruned or lost.
                if max(page.horizon, log.horizon) < head:
                    self._follow({log: []})
                page = page._replace(horizon=max(page.horizon, head))
            if log.epoch != epoch:
                continue  # rewound during the statement: the waiting clients have new cursors, and another page is read
            content = PageFrames(
                page.rows, start=start, horizon=page.horizon, anchor=page.anchor, forgotten=page.forgotten
            )
            if page.rows:
                self._kept.keep(log, content, page.rows[-1].id, began)
            # A kept page ends with its last message, because the stream may have more when the page is used again.
            self._board.pages.add(Page(log, content, page.rows[-1].id if page.rows and page.more else MAX_ID))
            del starts[log]

    def _up_to_the_head(self, log: StreamLog, epoch: int, page: PageRows) -> PageRows:
        """Return the page without the messages above the log's head.

        If the table loses such a message, a client that was sent it would get no gap event, because a rewind starts at the head.
        """
        if log.epoch == epoch:
            self._board.note(log, page.horizon)
        if not page.rows or page.rows[-1].id <= log.head:
            return page
        self._board.looks.add(log)
        return page._replace(rows=[row for row in page.rows if row.id <= log.head], more=True)

    def _page_start(self, log: StreamLog) -> int | None:
        """Return the cursor for the next page: the lowest of the waiting clients, and next time that of the longest waiting one.

        Return None if no client waits. With the lowest cursor, one page serves all clients within it. With that of the longest
        waiting client, clients do not wait until a client far behind has caught up with them.
        """
        cursors = [each.cursor for each in self._board.waiting(log) if each.cursor is not None]
        if not cursors:
            return None
        lowest = self._lowest_next.get(log, True)
        self._lowest_next[log] = not lowest
        return min(cursors) if lowest else cursors[0]


def _lacks_head(log: StreamLog, start: int, page: PageRows) -> bool:
    """Whether the log's head was added after ``start`` was read from it, and is missing among the rows around it.

    Then the statement ran on a server that has lost the head, and its rows must not follow it. The next look asks for the head.
    """
    above = next((row.id for row in page.rows if row.id >= log.head), log.head)
    return start < log.head < above and page.horizon < log.head
