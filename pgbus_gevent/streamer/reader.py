"""Reads from the database for those whom the ring cannot serve, a few statements at a time.

Reads are merged: whatever was asked while others were under way goes into the next statement, one for many streams; a page is read
once for all who need it. So ten thousand clients that come back at once cost a handful of statements.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Protocol

import gevent
from gevent.event import Event

from ..core.client import Subscription
from ..core.events import Read, Signal
from ..core.history import History
from ..core.kept_pages import KeptPages
from ..core.stream_log import StreamLog
from ..database.rows import Opening, OpenQuestion, Page, question, replays
from ..errors import DatabaseError
from ..messages import MAX_ID

logger = logging.getLogger("pgbus_gevent.reader")

STREAMS_PER_READ = 64
BYTES_PER_STREAM = 128 * 1024
"""Together they bound what one statement brings into memory: 8 MB, and what a client that stops reading makes us keep."""

PAGES_KEPT = 64
"""Pages that are kept for who comes a moment later; with the bytes of each, together 8 MB."""

KEEP_SECONDS = 5.0
"""How long they are kept."""

_MAX_PAUSE = 2.0  # seconds between tries while the database is away


class Source(Protocol):
    """What the reader needs of the database; :class:`pgbus_gevent.database.queries.Queries` is one."""

    def openings(self, questions: Sequence[OpenQuestion], *, limit: int, size: int) -> list[Opening]: ...
    def pages(self, after: Sequence[tuple[str, int]], *, limit: int, size: int) -> list[Page]: ...


class Reader:
    """Two kinds of reads, by any number of greenlets that each run :meth:`run`.

    A *look* at a stream (:meth:`look`) brings its log up to the database: for a stream that is new here, after a wake
    that did not carry its message, and for a client whose start only the database knows. A *page* (:meth:`behind`) is
    for clients below the ring. ``on_moved`` is told of logs with new frames, ``on_ready`` of clients that can go on
    without the reader, ``serve`` sends a page to those who wait for it, ``on_rewound`` is told of logs whose head the table does
    not have: what they held was dropped, and who was sent it has to be told.
    """

    def __init__(
        self,
        source: Source,
        *,
        serve: Callable[[StreamLog, History, list[Subscription]], None],
        on_moved: Callable[[StreamLog, int], None],
        on_ready: Callable[[Subscription], None],
        on_rewound: Callable[[StreamLog], None],
        page_size: int = 500,
        ring_messages: int = 1000,
        clock: Callable[[], float] = monotonic,
        read: Signal[Read] | None = None,
    ) -> None:
        self._source = source
        self._serve = serve
        self._on_moved = on_moved
        self._on_ready = on_ready
        self._on_rewound = on_rewound
        self._page_size = page_size
        self._ring_messages = ring_messages
        self._clock = clock
        self._read = read or Signal()
        self._looks: dict[StreamLog, dict[Subscription, None]] = {}
        self._waiting: dict[StreamLog, dict[Subscription, None]] = {}
        self._looking: set[StreamLog] = set()
        self._paging: set[StreamLog] = set()
        self._lowest_next: dict[StreamLog, bool] = {}
        self._kept = KeptPages(PAGES_KEPT)
        self._work = Event()
        self.reads = 0

    # what the other parts tell

    def look(self, log: StreamLog) -> None:
        """The stream may have moved."""
        self._looks.setdefault(log, {})
        self._work.set()

    def behind(self, subscription: Subscription) -> None:
        """A client needs the database: for its start, or for a page."""
        if subscription.waiting:
            return
        subscription.waiting = True
        queue = self._looks if subscription.cursor is None else self._waiting
        queue.setdefault(subscription.log, {})[subscription] = None
        self._work.set()

    def forget(self, subscription: Subscription) -> None:
        """The client has left."""
        log = subscription.log
        for queue in (self._looks, self._waiting):
            waiting = queue.get(log)
            if waiting is None or waiting.pop(subscription, self) is not None or waiting:
                continue
            # A look without clients is one that a wake asked for: it stays for those who still watch.
            if queue is self._waiting or log.retired:
                del queue[log]
        if log not in self._waiting:
            self._lowest_next.pop(log, None)

    @property
    def idle(self) -> bool:
        """Whether nothing waits for a read, and none is under way."""
        return not (self._looks or self._waiting or self._looking or self._paging)

    # the loop

    def run(self) -> None:
        """Read as long as there is something to read, for ever."""
        pause = 0.0
        kinds = [self._look_some, self._page_some]
        while True:
            try:
                busy = kinds[0]() or kinds[1]()
                # By turns, as where many streams move there is always one more to look at.
                kinds.reverse()
                pause = 0.0
            except DatabaseError as error:
                if not pause:
                    logger.warning("cannot read from the database, trying again: %s", error)
                pause = min(_MAX_PAUSE, max(0.05, pause * 2))
                gevent.sleep(pause * random.uniform(0.5, 1.0))
                continue
            if not busy:
                self._work.clear()
                if not self._work.wait(KEEP_SECONDS if self._kept else None):
                    self._kept.clear()

    def _tell(self, kind: str, found: Sequence[Opening | Page], began: float) -> None:
        self.reads += 1
        if self._read.handlers:
            rows = sum(len(one.rows) for one in found)
            self._read.emit(Read(kind, len(found), rows, self._clock() - began))

    # looks

    def _look_some(self) -> bool:
        # What is asked for while a read is under way may be newer than what that one sees: it has to wait for its own.
        logs = [log for log in self._looks if log not in self._looking][:STREAMS_PER_READ]
        if not logs:
            return False
        batch = {log: self._looks.pop(log) for log in logs}
        self._looking.update(logs)
        try:
            opening = {log: waiting for log, waiting in batch.items() if not log.is_open or replays(waiting)}
            self._open(opening)
            self._follow({log: waiting for log, waiting in batch.items() if log not in opening})
        except BaseException:
            for log, waiting in batch.items():
                self._looks.setdefault(log, {}).update(waiting)
            raise
        finally:
            self._looking.difference_update(logs)
            self._work.set()
        for waiting in batch.values():
            for subscription in waiting:
                subscription.waiting = False
                self._on_ready(subscription)
        return True

    def _open(self, batch: dict[StreamLog, dict[Subscription, None]]) -> None:
        """Ask for the state of streams that are new here, or that somebody wants more of than the ring has."""
        if not batch:
            return
        began = self._clock()
        heads = {log: log.head for log in batch if log.is_open}
        questions = [question(log, waiting) for log, waiting in batch.items()]
        openings = self._source.openings(questions, limit=self._ring_messages, size=BYTES_PER_STREAM)
        self._tell("open", openings, began)
        for log, asked, opening in zip(batch, questions, openings, strict=True):
            if not log.is_open:
                log.open(
                    head=opening.head,
                    horizon=opening.horizon,
                    oldest=opening.oldest,
                    floor=opening.floor,
                    rows=opening.rows,
                )
                self._on_moved(log, 0)
            current = log.head >= opening.head
            if not current:
                # It was open, and the answer is of newer messages than it has.
                self.look(log)
            for subscription in batch[log]:
                subscription.verified = current
                if subscription.place.replay == asked.replay is not None:
                    subscription.start = opening.start
            if opening.head < heads.get(log, 0):
                # Before anybody starts from a ring that the table does not agree with.
                self._follow({log: {}})

    def _follow(self, batch: dict[StreamLog, dict[Subscription, None]]) -> None:
        """Read on from the heads of streams that are open."""
        if not batch:
            return
        began = self._clock()
        starts = [(log, log.head, log.epoch, log.doubts) for log in batch]
        pages = self._source.pages(
            [(log.name, head) for log, head, _, _ in starts], limit=self._page_size, size=BYTES_PER_STREAM
        )
        self._tell("follow", pages, began)
        for (log, start, epoch, doubts), page in zip(starts, pages, strict=True):
            if log.epoch == epoch:
                log.settle(doubts)
            if log.epoch != epoch or self._is_lost(log, start, page):
                for subscription in batch[log]:
                    subscription.verified = False
                self.look(log)
                continue
            before = log.head
            log.note(horizon=page.horizon)
            # A notification may have brought some of it meanwhile.
            new = log.extend(page.rows)
            if log.head > before:
                self._on_moved(log, new)
            if page.more:
                self.look(log)
            for subscription in batch[log]:
                subscription.verified = not page.more

    def _is_lost(self, log: StreamLog, head: int, page: Page) -> bool:
        """Whether the table does not have what was the head before ``page`` was read; then the log was rewound to what it has.

        What was pruned is not lost, though its horizon may be forgotten one day too. The head was known before the statement
        began, and whatever told of it had been committed by then, so that its snapshot cannot be too old to have it.
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
        log.rewind(newest, horizon=page.horizon)
        self._kept.drop(log)
        self._on_rewound(log)
        return True

    # pages

    def _page_some(self) -> bool:
        logs = [log for log in self._waiting if log not in self._paging][:STREAMS_PER_READ]
        if not logs:
            return False
        self._paging.update(logs)
        try:
            starts = {log: self._page_start(log) for log in logs}
            for log, start in list(starts.items()):
                kept = self._kept.find(log, start, self._clock() - KEEP_SECONDS)
                if kept is not None:
                    del starts[log]
                    self._serve_page(log, *kept)
            if starts:
                self._read_pages(starts)
        finally:
            self._paging.difference_update(logs)
            self._work.set()
        return True

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
                    self._follow({log: {}})
                page = page._replace(horizon=max(page.horizon, head))
            if log.epoch != epoch:
                continue  # those who wait have other cursors now, and are read for again
            history = History(
                page.rows, start=start, horizon=page.horizon, anchor=page.anchor, forgotten=page.forgotten
            )
            if page.rows:
                self._kept.keep(log, history, page.rows[-1].id, began)
            # When it is served again there may be more, so then it ends with its last message.
            self._serve_page(log, history, page.rows[-1].id if page.rows and page.more else MAX_ID)

    def _up_to_the_head(self, log: StreamLog, epoch: int, page: Page) -> Page:
        """Nobody is sent what the log does not know of: should the table lose that, nobody would be told."""
        if log.epoch == epoch and page.horizon > log.head:
            log.note(horizon=page.horizon)
            self._on_moved(log, 0)
        if not page.rows or page.rows[-1].id <= log.head:
            return page
        self.look(log)
        return page._replace(rows=[row for row in page.rows if row.id <= log.head], more=True)

    def _page_start(self, log: StreamLog) -> int:
        """Whose turn it is: by turns the lowest cursor and that of who waits longest.

        The first makes sure that one page serves everyone who stands within it; the second that one client far behind does not
        make the others wait until it has come up to them.
        """
        waiting = self._waiting[log]
        lowest = self._lowest_next.get(log, True)
        self._lowest_next[log] = not lowest
        if lowest:
            return min(subscription.cursor or 0 for subscription in waiting)
        return next(iter(waiting)).cursor or 0

    def _serve_page(self, log: StreamLog, history: History, end: int) -> None:
        """Serve those who wait with a cursor from the page's start to below ``end``."""
        waiting = self._waiting.get(log, {})
        served = [subscription for subscription in waiting if history.start <= (subscription.cursor or 0) < end]
        for subscription in served:
            del waiting[subscription]
        if not waiting:
            self._waiting.pop(log, None)
            self._lowest_next.pop(log, None)
        try:
            self._serve(log, history, served)
        finally:
            # Whatever ended it: who is behind still has to be found so. Until here no pass could ask for the same again.
            for subscription in served:
                subscription.waiting = False
                self._on_ready(subscription)
