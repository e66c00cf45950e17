"""The console's tables of streams and connections. They are filtered, sorted and paged here, so ten thousand rows stay quick."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from time import monotonic
from typing import Any, NamedTuple, TypeVar

from ..core.audience import Audience
from ..core.board import Board
from ..core.client import Client, Subscription
from ..core.filters import Filters
from ..core.stream_counter import Counts
from ..streamer.turns import breathe

ROWS = 10
"""Rows on one page of a table."""

_SLICE = 500  # rows that are made before other greenlets run
_SHORTEST, _LONGEST = 1.5, 10.0  # seconds over which rates are measured

T = TypeVar("T")
Row = dict[str, Any]


class Wanted(NamedTuple):
    """The part of a table to show: the column to sort by, descending or not, a text that rows contain, and the page from 0."""

    sort: str
    down: bool
    text: str
    page: int


STREAM_COLUMNS = ("name", "readers", "behind", "rate", "messages", "head", "ring")
CONNECTION_COLUMNS = ("id", "streams", "owner", "address", "age", "bytes", "lag", "state")


class Tables:
    """The tables of one worker. The methods yield after every 500 rows.

    Meanwhile all greenlets of the worker run, so the stream or client of a row may be gone when its turn comes. A stream without a
    log is left out. A client that left is shown as it was.
    """

    def __init__(self, board: Board, clock: Callable[[], float] = monotonic, *, filters: Filters | None = None) -> None:
        self._board = board
        self._registry = board.registry
        self._audience = Audience(filters or Filters(), board.registry)
        self._counter = board.counter
        self._clock = clock
        # The counts of each stream at the last times that the table was asked for.
        self._counted: deque[tuple[float, dict[str, Counts]]] = deque()

    def streams(self, wanted: Wanted) -> dict[str, Any]:
        """A page of the streams that have connections."""
        counts, rate = self._counter.streams, self._rates()
        text = wanted.text.casefold()
        names = [name for name in counts if text in name.casefold()]
        # Counting the readers that are behind looks at each reader, so it is done only for the rows that are shown, if possible.
        by_all = wanted.sort == "behind"
        rows = [self._stream(name, counts[name], rate, by_all) for name in _in_slices(names)]
        page = _page([row for row in rows if row is not None], len(counts), wanted)
        for row in page["rows"]:
            row["behind"] = self._behind(row["name"])
        return page

    def _stream(self, name: str, counts: Counts, rate: Callable[[str], float], behind: bool) -> Row | None:
        log = self._registry.log(name)
        if log is None:
            return None  # the last reader left while this table was made
        return {
            "name": name,
            "readers": counts.active_connections,
            "behind": self._behind(name) if behind else 0,
            "rate": rate(name),
            "messages": counts.broadcasts,
            "head": log.head,
            "ring": log.missing(0),
        }

    def _behind(self, name: str) -> int:
        return sum(each.cursor is None or self._lag(each) > 0 for each in self._registry.subscriptions(name))

    def _lag(self, subscription: Subscription) -> int:
        """How many messages of the ring the client lacks. A cursor that rests below messages for others lacks none."""
        log, cursor = subscription.log, subscription.cursor
        if cursor is None or cursor >= log.head:
            return 0
        cursor = self._audience.past_others(subscription)
        return max(1, log.missing(cursor)) if cursor < log.head else 0

    def _rates(self) -> Callable[[str], float]:
        """A function for the messages per second of a stream, over the last seconds in which the table was asked for."""
        now, counts = self._clock(), self._counter.streams
        while len(self._counted) > 1 and now - self._counted[0][0] > _LONGEST:
            self._counted.popleft()
        if not self._counted or now - self._counted[-1][0] >= _SHORTEST:
            self._counted.append((now, counts))
        since, before = self._counted[0]
        seconds = now - since

        def rate(name: str) -> float:
            if seconds <= 0 or name not in before:
                return 0.0
            # If a stream had no connections for a moment, its count has started again from 0.
            return max(0, counts[name].broadcasts - before[name].broadcasts) / seconds if name in counts else 0.0

        return rate

    def connections(self, wanted: Wanted, stream: str | None = None) -> dict[str, Any]:
        """A page of the connections, or of those to one stream."""
        clients, now = self._registry.clients(), self._clock()
        if stream is not None:
            clients = [each.client for each in self._registry.subscriptions(stream)]
        text = wanted.text.casefold()
        rows = [self._connection(client, now) for client in _in_slices(clients) if not text or _has(client, text)]
        return _page(rows, len(clients), wanted)

    def _connection(self, client: Client, now: float) -> Row:
        places = client.subscriptions
        blocked = client.blocked_since
        lag = sum(map(self._lag, places))
        state = (
            "blocked" if blocked is not None
            else "starting" if not client.admitted
            else "replay" if any(each in self._board.waiting(each.log) for each in places)
            else "behind" if lag
            else "polling" if client.polls
            else "live"
        )  # fmt: skip
        return {
            "id": client.id,
            "streams": [each.log.name for each in places[:3]],
            "more": max(0, len(places) - 3),
            "owner": client.owner or "",
            "address": client.address,
            "age": round(now - client.opened_at, 1),
            "bytes": client.bytes_sent,
            "lag": lag,
            "state": state,
            "blocked": None if blocked is None else round(now - blocked, 1),
        }


def _has(client: Client, text: str) -> bool:
    given = (client.id, client.owner or "", client.address, *(each.log.name for each in client.subscriptions))
    return any(text in part.casefold() for part in given)


def _in_slices(things: Iterable[T]) -> Iterator[T]:
    for n, thing in enumerate(things, 1):
        if n % _SLICE == 0:
            breathe()
        yield thing


def _page(rows: list[Row], total: int, wanted: Wanted) -> dict[str, Any]:
    rows.sort(key=itemgetter(wanted.sort), reverse=wanted.down)
    pages = max(1, -(-len(rows) // ROWS))
    page = min(wanted.page, pages - 1)
    shown = rows[page * ROWS : (page + 1) * ROWS]
    return {"total": total, "matched": len(rows), "page": page, "pages": pages, "rows": shown}
